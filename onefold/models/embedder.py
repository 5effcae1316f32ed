"""One vector for a text: any transformer of this house, what it says of the tokens pooled, projected, normalised.

    tokens → trunk → pooling → projections → length 1

The trunk is an encoder (sentence-transformers, DPR) or a decoder whose last token has read all others (cpt, arXiv
2201.10005; most of today's large embedding models). It has no head.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.models.adopting import below
from onefold.models.encoder import EncoderConfig
from onefold.models.transformer import DecoderConfig
from onefold.nn.linear import Linear

Pooling = Literal["mean", "first", "last"]
HEADLESS = {"masked": None, "classes": 0, "pooler": False, "contacts": False}  # of an encoder
ACTIVATIONS = {"identity": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class ProjectionConfig(Config):
    """A dense layer on the pooled vector."""

    width: int = Field(ge=1)
    activation: Literal["identity", "tanh", "relu", "gelu"] = "identity"
    bias: bool = True


class EmbedderConfig(Config):
    """A trunk and what makes one vector of it. Texts differ from their answers in what stands around them:

    `delimiters` are strings before and behind a query, and before and behind a document; each becomes tokens of its
    own, so that a text always ends with the same ones. None: what the tokenizer itself puts around texts. `prompts`
    are strings put before a text, by name.
    """

    kind: Literal["embedder"] = "embedder"
    trunk: Annotated[EncoderConfig | DecoderConfig, Slot()]
    pooling: Pooling = "mean"
    projections: tuple[ProjectionConfig, ...] = ()
    normalise: bool = True
    context: int | None = None  # tokens read of a text; None: as many as the trunk is made for
    temperature: float = Field(default=0.07, gt=0)  # of the logits at first; learned
    delimiters: tuple[tuple[str, str], tuple[str, str]] | None = None
    prompts: dict[str, str] = {}
    prompt: str | None = None  # the name of the one that a text gets if none is asked for

    @model_validator(mode="after")
    def _fits(self) -> "EmbedderConfig":
        if self.context is not None and not 1 <= self.context <= self.trunk.context:
            raise ValueError(
                f"context ({self.context}) must lie between 1 and that of the trunk ({self.trunk.context})"
            )
        if isinstance(self.trunk, DecoderConfig):
            if not self.trunk.tied:
                raise ValueError("a trunk has no head: trunk.tied must be true")
            if self.pooling == "first":
                raise ValueError("the first token of a decoder sees no other: pooling must be last or mean")
        elif heads := [name for name, none in HEADLESS.items() if getattr(self.trunk, name) != none]:
            raise ValueError(f"a trunk has no head: trunk.{heads[0]} must be {HEADLESS[heads[0]]}")
        if self.prompt is not None and self.prompt not in self.prompts:
            raise ValueError(f"prompt is {self.prompt!r}, and prompts has {', '.join(self.prompts) or 'none'}")
        return self

    @property
    def body(self) -> EncoderConfig | DecoderConfig:
        """What of it other objectives can use."""
        return self.trunk

    @property
    def length(self) -> int:
        """Tokens read of a text."""
        return self.context or self.trunk.context

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.projections[-1].width if self.projections else self.trunk.width

    def build(self) -> "Embedder":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return Embedder(self)


def embedder_of(config: Config) -> Config:
    """The embedder that begins with this model: of an encoder the mean, of a decoder its last token; others as is."""
    if isinstance(config, DecoderConfig):
        return EmbedderConfig(trunk=config.but({"tied": True}), pooling="last")
    return EmbedderConfig(trunk=config.but(HEADLESS)) if isinstance(config, EncoderConfig) else config


class Embedder(nn.Module):
    """`encode` reads tokens and their number in each row; padding comes behind them.

    For the contrastive objective: one encoder for both `sides`, and the temperature in `log_scale`.
    """

    entry_points = ("features", "encode", "log_scale")  # what a parallel plan has to wrap
    sides = ("encode", "encode")

    def __init__(self, config: EmbedderConfig):
        super().__init__()
        self.config = config
        self.trunk = config.trunk.build()
        self.projections = nn.ModuleList()
        width = config.trunk.width
        for projection in config.projections:
            self.projections.append(Linear(width, projection.width, bias=projection.bias))
            width = projection.width
        self.activations = [ACTIVATIONS[projection.activation]() for projection in config.projections]
        self.log_inverse_temperature = nn.Parameter(torch.empty(1))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights; the trunk has its own already."""
        for projection in self.projections:
            projection.weight.normal_(std=projection.in_features**-0.5)
            if projection.bias is not None:
                projection.bias.zero_()
        self.log_inverse_temperature.fill_(-math.log(self.config.temperature))

    @property
    def depths(self) -> int:
        return self.trunk.depths

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embedding) to `depths`."""
        inner = name.removeprefix("trunk.")
        return self.depths if inner == name else self.trunk.depth_of(inner)

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the trunk makes of each token."""
        return self.trunk.features(tokens, positions, segments)

    def encode(self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B E"]:
        """The vectors of texts of these lengths; None: there is no padding."""
        segments = None
        if lengths is not None and isinstance(self.config.trunk, EncoderConfig):  # a decoder never looks behind a text
            segments = (torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]).long()
        return self.project(pool(self.trunk.features(tokens, None, segments), lengths, self.config.pooling))

    def project(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Pooled features through the projections, to length 1 where the config says so."""
        for projection, activation in zip(self.projections, self.activations):
            pooled = activation(projection(pooled))
        return F.normalize(pooled.float(), dim=-1) if self.config.normalise else pooled

    def log_scale(self) -> Float[Tensor, "1"]:
        """The logarithm of what products of vectors are multiplied with, -ln(temperature)."""
        return self.log_inverse_temperature.clone()

    def forward(self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B E"]:
        return self.encode(tokens, lengths)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another embedder, or of an encoder or decoder, as this one takes them.

        Heads are left out; what this model has beside its trunk stays fresh where the other lacks it.
        """
        own = {name: parameter.detach() for name, parameter in self.named_parameters()}
        trunk = {f"trunk.{name}": w for name, w in self.trunk.adopt(below(weights, "trunk")).items()}
        adopted = {name: w for name, w in trunk.items() if name in own or not name.startswith("trunk.unembed.")}
        for name, tensor in own.items():
            if not name.startswith("trunk."):
                given = weights.get(name)
                adopted[name] = tensor if given is None or given.shape != tensor.shape else given
        return adopted


def pool(features: Float[Tensor, "B T D"], lengths: Int[Tensor, " B"] | None, how: Pooling) -> Float[Tensor, "B D"]:
    """One vector a text: the mean of its tokens', its first one's, or its last one's."""
    if how == "first":
        return features[:, 0]
    if how == "last":
        last = features.shape[1] - 1 if lengths is None else lengths - 1
        return features[torch.arange(len(features), device=features.device), last]
    if lengths is None:
        return features.mean(1)
    inside = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
    return (features * inside[..., None]).sum(1) / lengths[:, None]
