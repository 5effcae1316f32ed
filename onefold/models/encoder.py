"""One encoder for BERT, RoBERTa, ALBERT, MiniLM and ESM: the decoder's blocks, looking both ways.

    tokens → embed → blocks → norm → features
    features → head: logits of the vocabulary for each token (masked language modelling)
    features → classify: logits of classes, for a text or for each of its tokens (fine-tuning)

See encoder_families.py for the published settings.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.models.adopting import below, with_routes
from onefold.models.embed import Embed, EmbedConfig, Norm
from onefold.models.transformer import (
    Block,
    BlockConfig,
    build_relative,
    check_repeat,
    is_trusted,
    patterned,
    with_new_tokens,
)
from onefold.models.vision.depths import depth_of
from onefold.nn.adaptive.repeat import RepeatConfig
from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.feedforward import Activation, activation
from onefold.nn.linear import Linear
from onefold.nn.norm import LayerNormConfig
from onefold.nn.position import LearnedPositionConfig
from onefold.nn.sparse.experts import upcycled

_HEADS = ("pooler.", "transform.", "unembed.", "classifier.", "regression.")  # what a new task may have afresh


class MaskedHeadConfig(Config):
    """Which token stood here: dense → activation → norm → the embedding, transposed, and a bias (arXiv 1810.04805)."""

    activation: Activation = "gelu"
    norm: Norm = LayerNormConfig(eps=1e-12)


class EncoderConfig(Config):
    """A bidirectional transformer: a trunk, and the heads that it has."""

    kind: Literal["encoder"] = "encoder"
    vocab: int
    width: int
    depth: int
    context: int  # what it is trained on; learned positions end here or later
    embed: EmbedConfig = EmbedConfig()
    block: BlockConfig
    pattern: tuple[dict[str, Any], ...] = ()  # how layers differ, as in DecoderConfig
    repeat: RepeatConfig | None = None  # all blocks again and again (Universal Transformer); None: once
    groups: int | None = None  # layers with weights of their own, each applied depth / groups times in a row (ALBERT)
    norm: Norm | None = None  # after the last block, where blocks normalise what enters them
    pooler: bool = False  # one vector a text: tanh(dense(first token))
    masked: MaskedHeadConfig | None = MaskedHeadConfig()
    classes: int = Field(default=0, ge=0)  # of the classifier; 0: none
    task: Literal["sequence", "token", "span"] = "sequence"  # what it classifies; "span": where an answer starts, ends
    dropout: float = 0.0  # before the classifier
    contacts: bool = False  # which tokens touch, by regression on attention (ESM-1b)
    init: Literal["normal", "fan_in"] = "normal"

    @model_validator(mode="after")
    def _fits(self, info: Any) -> "EncoderConfig":  # pydantic.ValidationInfo
        for block in patterned(self.block, self.pattern, len(self.pattern) or 1, is_trusted(info)):
            if isinstance(block.mixer, AttentionConfig):
                block.mixer.widths(self.width)
            elif self.contacts:
                raise ValueError("contacts are read from attention: block.mixer must be attention")
            if getattr(block.mixer, "causal", False):
                raise ValueError("an encoder looks both ways: block.mixer.causal must be false")
            check_repeat(self.repeat, (block,))
            if block.cross is not None:
                raise ValueError("an encoder has nothing to look at but its own text: block.cross must be null")
        if isinstance(self.embed.position, LearnedPositionConfig) and self.embed.position.context < self.context:
            raise ValueError(f"context ({self.context}) exceeds the learned positions ({self.embed.position.context})")
        if self.groups is not None and self.pattern:
            raise ValueError("layers that share weights are all alike: groups and pattern exclude each other")
        if self.repeat is not None and (self.groups is not None or self.contacts):
            raise ValueError("repeat applies all blocks in turn: it excludes groups and contacts")
        if self.groups is not None and not 1 <= self.groups <= self.depth:
            raise ValueError(f"groups ({self.groups}) must lie between 1 and depth ({self.depth})")
        if self.task == "span" and self.classes not in (0, 2):
            raise ValueError(f"a span has two ends: classes must be 2, not {self.classes}")
        return self

    def blocks(self) -> list[BlockConfig]:
        """The config of every layer with weights of its own, in order."""
        return patterned(self.block, self.pattern, self.groups or self.depth)

    def build(self) -> "Encoder":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return Encoder(self)


class MaskedTransform(nn.Module):
    """What the masked head does before it compares with the embedding."""

    def __init__(self, config: MaskedHeadConfig, width: int, inner: int):
        super().__init__()
        self.dense = Linear(width, inner)
        self.activation = activation(config.activation)
        self.norm = config.norm.build(inner)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return self.norm(self.activation(self.dense(x)))


class Encoder(nn.Module):
    """`features` reads tokens, `head` and `classify` make logits of features.

    Rows may hold several texts: attention stays inside a segment, and `positions` restart with it. Padding is a segment
    of its own, at any valid position. Calling the model gives the vocabulary's logits, else those of the classes, else
    the features, whichever it has first.
    """

    entry_points = ("features", "head", "classify")  # what a parallel plan has to wrap

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embed = Embed(config.embed, config.vocab, config.width)
        self.blocks = nn.ModuleList(block.build(config.width) for block in config.blocks())
        self.repeat = config.repeat.build(config.width) if config.repeat else None
        self.relative = build_relative(config.block)
        self.norm = config.norm.build(config.width) if config.norm else None
        self.pooler = Linear(config.width, config.width) if config.pooler else None
        self.transform = self.unembed = None
        if config.masked is not None:
            inner = config.embed.width or config.width
            self.transform = MaskedTransform(config.masked, config.width, inner)
            self.unembed = Linear(inner, config.vocab)
            self.unembed.weight = self.embed.token.weight
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = Linear(config.width, config.classes) if config.classes else None
        heads = config.depth * config.block.mixer.heads if config.contacts else 0
        self.regression = Linear(heads, 1) if config.contacts else None
        self.depths = len(self.blocks) + 1
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights.

        "normal" is BERT's: N(0, 0.02) everywhere. "fan_in" scales matrices and token vectors to their own width, so
        that narrow models, too, soon learn more than how often each token occurs.
        """
        fan_in = self.config.init == "fan_in"
        for name, parameter in self.named_parameters():
            if ".kernel." in name or ".route." in name or name.startswith("repeat."):
                pass  # as it made itself
            elif name.endswith("bias") or name.startswith(("relative.", "regression.")):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif name.endswith("_scale"):
                pass  # as its block made it
            elif fan_in and not name.startswith(("embed.position.", "embed.token_type.")):
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.normal_(std=0.02)

    def layers(self) -> Iterator[Block]:
        """The blocks in the order in which they are applied."""
        for i in range(self.config.depth):
            yield self.blocks[i * len(self.blocks) // self.config.depth]

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token: the input of all heads. `types` None: all are of the first type."""
        layout = self._layout(tokens, positions, segments)
        x = self.embed(tokens, layout, types)
        if self.repeat is not None:
            x = self.repeat(x, layout, self.blocks)
        else:
            for block in self.layers():
                x = block(x, layout)
        return x if self.norm is None else self.norm(x)

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "..."]:
        """Logits of the token that stands here; of the classes where it has no masked head; else the features."""
        if self.unembed is not None:
            return self.unembed(self.transform(features))
        return features if self.classifier is None else self.classify(features)

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor]:
        """What `head` multiplies, with which matrix [V, E], and the bias it adds: for losses that need no logits."""
        return self.transform(features), self.unembed.weight, self.unembed.bias

    def pool(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a row: its first token's, through the pooler where there is one."""
        first = features[:, 0]
        return first if self.pooler is None else self.pooler(first).tanh()

    def classify(
        self, features: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"] | Float[Tensor, "B T C"]:
        """Logits of the classes of each row, or of each token; `segments`, for other models, do not matter here."""
        x = self.pool(features) if self.config.task == "sequence" else features
        return self.classifier(self.dropout(x))

    def forward(self, tokens: Int[Tensor, "B T"], *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        return self.head(self.features(tokens, *args, **kwargs))

    def contacts(
        self,
        tokens: Int[Tensor, "B T"],
        residues: Bool[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T T"]:
        """How probably two tokens touch: logistic regression on all heads' attention, symmetrised and corrected.

        The average product of rows and columns is taken off (APC), as ESM does (Rao et al. 2020, 2020.12.15.422761).
        `residues`: the tokens of a protein, without those that begin and end it; only their entries mean something.
        """
        maps = self.coupled_attention(tokens, residues, positions, segments)
        weights = self.regression.weight[0].split([self.config.block.mixer.heads] * self.config.depth)
        logits = sum(torch.einsum("bhij,h->bij", layer, own) for layer, own in zip(maps, weights))
        return (logits + self.regression.bias).sigmoid()

    def coupled_attention(
        self,
        tokens: Int[Tensor, "B T"],
        residues: Bool[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Iterator[Float[Tensor, "B H T T"]]:
        """Layer after layer, what `contacts` sees: attention among `residues` both ways, corrected."""
        among = residues[:, None, :, None] & residues[:, None, None, :]
        for attention in self.attention(tokens, positions, segments):
            both = attention * among
            both = both + both.mT
            rows, columns = both.sum(-1, keepdim=True), both.sum(-2, keepdim=True)
            yield both - rows * columns / both.sum((-1, -2), keepdim=True)

    def attention(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
    ) -> Iterator[Float[Tensor, "B H T T"]]:
        """Layer after layer, how much each token (third axis) takes from each (fourth).

        Errors: UserError where another mixer stands in its place.
        """
        other = {block.mixer.kind for block in self.config.blocks() if not isinstance(block.mixer, AttentionConfig)}
        if other:
            raise UserError(f"this model has no attention to look at: its mixer is {', '.join(sorted(other))}")
        if self.repeat is not None or any(block.route for block in self.config.blocks()):
            raise UserError("the attention of repeated blocks, and of those that tokens pass by, cannot be looked at")
        layout = self._layout(tokens, positions, segments)
        x = self.embed(tokens, layout, types)
        for block in self.layers():
            yield block.mixer.weights(x if block.residual == "post" else block.mixer_norm(x), layout)
            x = block(x, layout)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another encoder as this one takes them.

        Heads that it lacks, or of another shape, stay fresh here; those that this model lacks are left out. Tokens that
        this model adds begin as the mean of the others. Where this one has experts, a dense layer is upcycled.
        """
        own = {name: parameter.detach() for name, parameter in self.named_parameters()}
        given = with_routes(upcycled(below(weights, "trunk"), self), self)
        if self.transform is None and "transform.dense.weight" in given:
            # Classes of pre-training (is this the next sentence?) are not those of a task, even if as many.
            given = {name: tensor for name, tensor in given.items() if not name.startswith("classifier.")}
        given = with_new_tokens(given, self.config.vocab, ("embed.token.weight", "unembed.bias"))
        adopted = {name: tensor for name, tensor in given.items() if name in own or not name.startswith(_HEADS)}
        fresh = {
            name: tensor
            for name, tensor in own.items()
            if name.startswith(_HEADS) and (name not in given or given[name].shape != tensor.shape)
        }
        return adopted | fresh

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embedding) to `depths` (norm and heads)."""
        return depth_of(name, (len(self.blocks),))

    def _layout(self, tokens: Tensor, positions: Tensor | None, segments: Tensor | None) -> Layout:
        whole = torch.arange(tokens.shape[1], device=tokens.device)[None]
        layout = Layout(whole if positions is None else positions, segments=segments)
        if self.relative is not None:
            layout.relate(self.relative, causal=False)
        return layout
