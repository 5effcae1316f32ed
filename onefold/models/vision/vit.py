"""The vision transformer (arXiv 2010.11929): squares of a picture as words, read by the blocks of every transformer.

    pixels → embed (squares, class token, places) → blocks → norm → pool → classifier

Sizes: vision_sizes.py.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.adopting import adopt
from onefold.models.embed import Norm
from onefold.models.transformer import BlockConfig
from onefold.models.vision.depths import depth_of
from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.drop_path import rising
from onefold.nn.linear import Linear
from onefold.nn.norm import LayerNormConfig
from onefold.nn.vision.patches import Patches, resample, sines


class ViTConfig(Config):
    """A vision transformer. Pictures of another size than `image` are read too: the places are stretched to them."""

    kind: Literal["vit"] = "vit"
    image: int = 224  # pixels a side
    patch: int = 16
    channels: int = 3
    classes: int = 1000  # 0: no classifier
    width: int
    depth: int
    block: BlockConfig
    norm: Norm | None = LayerNormConfig(eps=1e-6)
    class_token: bool = True
    places: Literal["learned", "sines"] | None = "learned"  # sines: fixed (arXiv 2111.06377); None: only their order
    pool: Literal["class", "mean"] = "class"  # what the classifier sees: the class token, or the mean of the squares
    norm_pooled: bool = False  # the last norm comes after pooling instead of before
    dropout: float = 0.0  # of squares and places
    drop_path: float | None = None  # of the last block, rising from 0 in the first; None: as `block` says

    @model_validator(mode="after")
    def _fits(self) -> "ViTConfig":
        if isinstance(self.block.mixer, AttentionConfig):
            self.block.mixer.widths(self.width)
            if self.block.mixer.causal:
                raise ValueError("squares of a picture have no order: block.mixer.causal must be false")
        if self.image % self.patch:
            raise ValueError(f"image ({self.image}) must be a multiple of patch ({self.patch})")
        if self.pool == "class" and not self.class_token:
            raise ValueError('without class_token, pool must be "mean"')
        if self.places == "sines" and self.width % 4:
            raise ValueError(f"width ({self.width}) must be a multiple of 4 for sines")
        return self

    @property
    def grid(self) -> int:
        """Squares a side."""
        return self.image // self.patch

    def blocks(self) -> list[BlockConfig]:
        """The config of every layer, in order."""
        if self.drop_path is None:
            return [self.block] * self.depth
        return [self.block.model_copy(update={"drop_path": rate}) for rate in rising(self.drop_path, self.depth)]

    def build(self) -> "ViT":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return ViT(self)


class PictureEmbed(nn.Module):
    """Squares as vectors with their places added, the class token first."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch = Patches(config.channels, config.patch, config.width)
        self.prefix = int(config.class_token)
        self.class_token = nn.Parameter(torch.zeros(config.width)) if config.class_token else None
        places = torch.zeros(self.prefix + config.grid**2, config.width) if config.places else None
        self.places = None if places is None else nn.Parameter(places, requires_grad=config.places == "learned")
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], kept: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """All squares, or only those that `kept` names, in its order."""
        x = self.patch(pixels)
        grid, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if self.places is not None:
            x = x + resample(self.places[self.prefix :], grid).to(x.dtype)
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        if self.class_token is not None:
            first = self.class_token if self.places is None else self.class_token + self.places[0]
            first = first.to(x.dtype)
            x = torch.cat((first.expand(len(x), 1, -1), x), dim=1)
        return self.dropout(x)


class ViT(nn.Module):
    """`features` reads pictures, `head` makes logits of classes; calling the model does both."""

    entry_points = ("features", "head")  # what a parallel plan has to wrap

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.embed = PictureEmbed(config)
        self.blocks = nn.ModuleList(block.build(config.width) for block in config.blocks())
        self.norm = config.norm.build(config.width) if config.norm else nn.Identity()
        self.classifier = Linear(config.width, config.classes) if config.classes else nn.Identity()
        self.depths = config.depth + 1
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: N(0, 0.02) in the blocks, as large as keeps the variance where pixels enter."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif name.endswith("_scale") or ".kernel." in name:
                pass  # as its block made it
            elif name == "embed.patch.linear.weight":
                nn.init.trunc_normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            elif name == "embed.class_token":
                parameter.normal_(std=1e-6)
            elif name == "embed.places" and self.config.places == "sines":
                parameter.zero_()[self.embed.prefix :] = sines(self.config.grid, self.config.width)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def features(
        self, pixels: Float[Tensor, "B C H W"], kept: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of the class token, where there is one, and of each square, row by row.

        `kept` leaves the other squares out (masked autoencoders).
        """
        x = self.embed(pixels, kept)
        layout = Layout(torch.arange(x.shape[1], device=x.device)[None])
        for block in self.blocks:
            x = block(x, layout)
        return x if self.config.norm_pooled else self.norm(x)

    def pool(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a picture."""
        x = features[:, 0] if self.config.pool == "class" else features[:, self.embed.prefix :].mean(1)
        return self.norm(x) if self.config.norm_pooled else x

    def head(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; the pooled features themselves without a classifier."""
        return self.classifier(self.pool(features))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        return self.head(self.features(pixels))

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another vision transformer, or of a masked autoencoder's encoder, fitted to this one."""
        return adopt(self, weights, self.embed.prefix)

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embedding) to `depths` (norm and classifier)."""
        return depth_of(name, (self.config.depth,))
