"""ResNet with bottlenecks (arXiv 1512.03385), as it is trained since: the stride in the 3×3 convolution ("v1.5").

pixels → 7×7 stem, max → stages of bottlenecks → mean → classifier
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.vision.convnet import ConvNet, channels_last, check_stages
from onefold.nn.vision.batch_norm import BatchNorm

EXPANSION = 4  # of a bottleneck's width where it joins the stream


class ResNetConfig(Config):
    """A ResNet of one block count and one bottleneck width for each stage."""

    kind: Literal["resnet"] = "resnet"
    image: int = 224  # pixels a side; others are read too
    channels: int = 3
    classes: int = 1000  # 0: no classifier
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64

    @model_validator(mode="after")
    def _fits(self) -> "ResNetConfig":
        check_stages(self.blocks, self.widths)
        return self

    def build(self) -> "ResNet":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return ResNet(self)


class ConvNorm(nn.Module):
    """A convolution and the norm that stands in for its bias."""

    def __init__(self, inward: int, outward: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inward, outward, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(outward)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """Narrow by 1×1, look around by 3×3, widen by 1×1."""

    def __init__(self, inward: int, width: int, stride: int):
        super().__init__()
        outward = EXPANSION * width
        self.narrow = ConvNorm(inward, width, 1)
        self.look = ConvNorm(width, width, 3, stride)
        self.widen = ConvNorm(width, outward, 1)
        changes = inward != outward or stride != 1
        self.shortcut = ConvNorm(inward, outward, 1, stride) if changes else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.widen(F.relu(self.look(F.relu(self.narrow(x)))))
        return F.relu(y + self.shortcut(x))


class Stage(nn.Module):
    def __init__(self, inward: int, width: int, depth: int, stride: int):
        super().__init__()
        rest = [Bottleneck(EXPANSION * width, width, 1) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList([Bottleneck(inward, width, stride), *rest])

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        for block in self.blocks:
            x = block(x)
        return x


class ResNet(ConvNet):
    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        self.stem = ConvNorm(config.channels, config.stem, 7, 2)
        inward = [config.stem, *(EXPANSION * width for width in config.widths)]
        self.stages = nn.ModuleList(
            Stage(inward[i], width, depth, 2 if i else 1)
            for i, (width, depth) in enumerate(zip(config.widths, config.blocks))
        )
        self.classifier = self.make_classifier(inward[-1])
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: as large as keeps the variance of gradients (arXiv 1502.01852); every block begins as its
        shortcut, its last norm being zero (1706.02677, section 5.1)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name.endswith("widen.norm.weight"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
            else:
                parameter.normal_(std=0.01)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = channels_last(pixels)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return x
