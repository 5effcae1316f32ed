"""The masked autoencoder (arXiv 2111.06377): a vision transformer that learns by filling in what it does not see.

    a quarter of the squares → encoder → all places, the others marked as masked → decoder → pixels of every square

Only the encoder is kept in the end; its parameters are called `encoder.…`, as a ViT's are after that.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.adopting import adopt
from onefold.models.embed import Norm
from onefold.models.transformer import BlockConfig
from onefold.models.vision.vit import ViTConfig
from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.linear import Linear
from onefold.nn.norm import LayerNormConfig
from onefold.nn.vision.patches import patchify, resample, sines


class MAEConfig(Config):
    """An encoder, and a decoder that is light because it reads every place."""

    kind: Literal["mae"] = "mae"
    encoder: ViTConfig
    width: int = 512  # of the decoder, as what follows
    depth: int = 8
    block: BlockConfig
    norm: Norm = LayerNormConfig(eps=1e-6)
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.75  # share of the squares

    @model_validator(mode="after")
    def _fits(self) -> "MAEConfig":
        if self.encoder.classes:
            raise ValueError("encoder.classes must be 0: a masked autoencoder has no classifier")
        if isinstance(self.block.mixer, AttentionConfig):
            self.block.mixer.widths(self.width)
        if getattr(self.block.mixer, "causal", False):
            raise ValueError("squares of a picture have no order: block.mixer.causal must be false")
        if self.width % 4:
            raise ValueError(f"width ({self.width}) must be a multiple of 4")
        if not 0 < self.seen(self.encoder.grid**2) < self.encoder.grid**2:
            raise ValueError(f"masked={self.masked} leaves none or all of {self.encoder.grid**2} squares")
        return self

    @property
    def body(self) -> ViTConfig:
        """What is kept of it once it has learned."""
        return self.encoder

    @property
    def image(self) -> int:
        return self.encoder.image

    @property
    def channels(self) -> int:
        return self.encoder.channels

    def seen(self, squares: int) -> int:
        """How many of this many squares the encoder sees."""
        return int(squares * (1 - self.masked))

    def build(self) -> "MAE":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return MAE(self)


class MAE(nn.Module):
    """`reconstruct` is what it is trained by, `features` and `pool` what it was trained for."""

    entry_points = ("reconstruct", "features")  # what a parallel plan has to wrap

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.config = config
        encoder = config.encoder
        self.encoder = encoder.build()
        self.enter = Linear(encoder.width, config.width)
        self.mask = nn.Parameter(torch.zeros(config.width))  # stands where nothing was seen
        places = torch.zeros(self.encoder.embed.prefix + encoder.grid**2, config.width)
        self.places = nn.Parameter(places, requires_grad=False)  # fixed
        self.blocks = nn.ModuleList(config.block.build(config.width) for _ in range(config.depth))
        self.norm = config.norm.build(config.width)
        self.predict = Linear(config.width, encoder.patch**2 * encoder.channels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights of the decoder, as the encoder has made its own."""
        for name, parameter in self.named_parameters():
            if name.startswith("encoder.") or name.endswith("_scale") or ".kernel." in name:
                pass
            elif name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif name == "places":
                parameter.zero_()[self.encoder.embed.prefix :] = sines(self.config.encoder.grid, self.config.width)
            elif name == "mask":
                parameter.normal_(std=0.02)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def reconstruct(
        self, pixels: Float[Tensor, "B C H W"], generator_seed: int | None = None
    ) -> tuple[Float[Tensor, "B N P"], Float[Tensor, "B N P"], Bool[Tensor, "B N"]]:
        """What the squares are predicted to be, what they are, and which of them were not seen.

        Squares are drawn by torch's generator of the pixels' device, or by one of `generator_seed`.
        """
        squares = (pixels.shape[2] // self.config.encoder.patch) * (pixels.shape[3] // self.config.encoder.patch)
        generator = None
        if generator_seed is not None:
            generator = torch.Generator(pixels.device).manual_seed(generator_seed)
        noise = torch.rand(len(pixels), squares, generator=generator, device=pixels.device)
        kept = noise.argsort(1)[:, : self.config.seen(squares)]
        mask = torch.ones_like(noise, dtype=torch.bool).scatter_(1, kept, False)
        target = patchify(pixels, self.config.encoder.patch).flatten(1, 2)
        return self.fill_in(pixels, kept), target, mask

    def fill_in(self, pixels: Float[Tensor, "B C H W"], kept: Int[Tensor, "B K"]) -> Float[Tensor, "B N P"]:
        """Every square's pixels, predicted from the squares that `kept` names."""
        prefix, patch = self.encoder.embed.prefix, self.config.encoder.patch
        h, w = pixels.shape[2] // patch, pixels.shape[3] // patch
        seen = self.enter(self.encoder.features(pixels, kept))
        x = self.mask.to(seen.dtype).expand(len(seen), h * w, -1)
        x = x.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), seen[:, prefix:])
        places = torch.cat((self.places[:prefix], resample(self.places[prefix:], (h, w))))
        x = torch.cat((seen[:, :prefix], x), dim=1) + places.to(seen.dtype)
        layout = Layout(torch.arange(x.shape[1], device=x.device)[None])
        for block in self.blocks:
            x = block(x, layout)
        return self.predict(self.norm(x))[:, prefix:]

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """What the encoder makes of whole pictures."""
        return self.encoder.features(pixels)

    def pool(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a picture."""
        return self.encoder.pool(features)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], generator_seed: int | None = None
    ) -> tuple[Float[Tensor, "B N P"], Float[Tensor, "B N P"], Bool[Tensor, "B N"]]:
        return self.reconstruct(pixels, generator_seed)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another masked autoencoder, for pictures of any size, fitted to this one."""
        return adopt(self, weights, self.encoder.embed.prefix)
