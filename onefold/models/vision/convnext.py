"""ConvNeXt (arXiv 2201.03545): a convolutional network with the habits of a vision transformer.

    pixels → stem → stages of blocks, each after the first halving the sides → mean → norm → classifier

A block is a 7×7 convolution of each channel alone, norm, feed-forward and a learned scale. Pictures stand with their
channels last throughout, as norms and feed-forwards want them. Sizes: vision_sizes.py.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.models.vision.convnet import ConvNet, check_stages
from onefold.nn.drop_path import DropPath, rising
from onefold.nn.feedforward import Activation, MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.vision.depthwise import DepthwiseConv
from onefold.nn.vision.patches import Patches


class ConvNeXtConfig(Config):
    """A ConvNeXt of one block count and one width for each stage."""

    kind: Literal["convnext"] = "convnext"
    image: int = 224  # pixels a side; others are read too
    channels: int = 3
    classes: int = 1000  # 0: no classifier
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    patch: int = 4  # of the stem
    kernel: int = 7
    expansion: int = 4  # of the feed-forward
    activation: Activation = "gelu"
    norm: LayerNormConfig = LayerNormConfig(eps=1e-6)
    last_norm: LayerNormConfig = LayerNormConfig(eps=1e-6)  # of the pooled features
    layer_scale: float | None = 1e-6  # what each channel of a block is multiplied with at first
    drop_path: float = 0.0  # of the last block, rising from 0 in the first

    @model_validator(mode="after")
    def _fits(self) -> "ConvNeXtConfig":
        check_stages(self.blocks, self.widths)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel ({self.kernel}) must be odd")
        return self

    def build(self) -> "ConvNeXt":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only.

        Raises UserError where pictures are too small for the stages: nothing would be left of them. Not said of the
        config alone, which becomes that of a small model step by step.
        """
        least = self.patch * 2 ** (len(self.blocks) - 1)
        if self.image < least:
            raise UserError(
                f"pictures of {self.image} pixels a side are too small for a ConvNeXt of {len(self.blocks)} stages and "
                f"patches of {self.patch}: use at least {least} (data.side), fewer stages or a smaller patch"
            )
        return ConvNeXt(self)


class Stem(nn.Module):
    def __init__(self, config: ConvNeXtConfig):
        super().__init__()
        self.patch = Patches(config.channels, config.patch, config.widths[0])
        self.norm = config.norm.build(config.widths[0])

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        return self.norm(self.patch(pixels))


class Down(nn.Module):
    """Half the sides, another width."""

    def __init__(self, config: ConvNeXtConfig, before: int, width: int):
        super().__init__()
        self.norm = config.norm.build(before)
        self.patch = Patches(before, 2, width)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        return self.patch(self.norm(x).permute(0, 3, 1, 2))


class ConvNeXtBlock(nn.Module):
    def __init__(self, config: ConvNeXtConfig, width: int, drop_path: float):
        super().__init__()
        self.conv = DepthwiseConv(width, config.kernel)
        self.norm = config.norm.build(width)
        self.ffn = MLPConfig(width=config.expansion * width, activation=config.activation).build(width)
        scale = config.layer_scale
        self.scale = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.ffn(self.norm(y).flatten(1, 2)).view_as(x)
        return x + self.drop_path(y if self.scale is None else y * self.scale)


class Stage(nn.Module):
    def __init__(self, config: ConvNeXtConfig, number: int, rates: list[float]):
        super().__init__()
        width = config.widths[number]
        self.down = Down(config, config.widths[number - 1], width) if number else None
        self.blocks = nn.ModuleList(ConvNeXtBlock(config, width, rate) for rate in rates)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        if self.down is not None:
            x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class ConvNeXt(ConvNet):
    def __init__(self, config: ConvNeXtConfig):
        super().__init__(config)
        rates = torch.tensor(rising(config.drop_path, sum(config.blocks)), device="cpu").split(config.blocks)
        self.stem = Stem(config)
        self.stages = nn.ModuleList(Stage(config, i, of_stage.tolist()) for i, of_stage in enumerate(rates))
        self.norm = config.last_norm.build(config.widths[-1])
        self.classifier = self.make_classifier(config.widths[-1])
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: N(0, 0.02) everywhere (section A.1 of the paper); scales begin as their blocks made them."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif not name.endswith(".scale"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    def pool(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D"]:
        """One vector a picture: the mean of its places, normalised."""
        return self.norm(features.mean((2, 3)))
