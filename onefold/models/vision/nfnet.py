"""NFNet (arXiv 2102.06171): a residual network without normalisation of activations.

    pixels → stem of four convolutions → stages of blocks → 1×1 convolution → mean → classifier

Variance is kept by hand. Weights are standardised; the activation is scaled to keep it; a block sees its input divided
by the deviation β that it is predicted to have, and adds α of what it makes. Sizes: vision_sizes.py.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.vision.convnet import ConvNet, channels_last, check_stages
from onefold.nn.drop_path import DropPath, rising
from onefold.nn.linear import Linear
from onefold.nn.vision.standardised import StandardisedConv

GAMMA = 1.7015043497085571  # 1 / the deviation of GELU of standard normal numbers


class NFNetConfig(Config):
    """An NFNet of one block count and one width for each stage."""

    kind: Literal["nfnet"] = "nfnet"
    image: int = 192  # pixels a side; others are read too
    channels: int = 3
    classes: int = 1000  # 0: no classifier
    blocks: tuple[int, ...] = (1, 2, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    stem: int = 128
    group: int = 128  # channels of a group of the 3×3 convolutions, half as wide as the stage
    alpha: float = 0.2  # how much of a block is added
    dropout: float = 0.0  # of the pooled features
    drop_path: float = 0.0  # of the last block, rising from 0 in the first

    @model_validator(mode="after")
    def _fits(self) -> "NFNetConfig":
        check_stages(self.blocks, self.widths)
        for width in self.widths:
            if width % (2 * self.group):
                raise ValueError(f"each width ({width}) must be a multiple of two groups ({self.group} channels each)")
        if self.stem % 8:
            raise ValueError(f"stem ({self.stem}) must be a multiple of 8")
        return self

    @property
    def width(self) -> int:
        """Of the features."""
        return 2 * self.widths[-1]

    def build(self) -> "NFNet":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return NFNet(self)


def activate(x: Tensor) -> Tensor:
    return F.gelu(x) * GAMMA


class Stem(nn.Module):
    """Four 3×3 convolutions: a quarter of the sides."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        widths = [channels, width // 8, width // 4, width // 2, width]
        strides = (2, 1, 1, 2)
        self.convs = nn.ModuleList(
            StandardisedConv(widths[i], widths[i + 1], 3, stride) for i, stride in enumerate(strides)
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        first, *rest = self.convs
        x = first(x)
        for conv in rest:
            x = conv(activate(x))
        return x


class SqueezeExcite(nn.Module):
    """Each channel times a number from 0 to 2 that all channels' means decide (arXiv 1709.01507)."""

    def __init__(self, width: int):
        super().__init__()
        self.narrow = Linear(width, width // 2)
        self.widen = Linear(width // 2, width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        gate = 2 * torch.sigmoid(self.widen(F.relu(self.narrow(x.mean((2, 3))))))
        return x * gate[..., None, None]


class NFBlock(nn.Module):
    """`beta`: 1 / the deviation that the input is predicted to have."""

    def __init__(self, inward: int, outward: int, stride: int, beta: float, config: NFNetConfig, drop_path: float):
        super().__init__()
        self.beta, self.alpha, self.stride = beta, config.alpha, stride
        width, groups = outward // 2, outward // 2 // config.group
        self.conv1 = StandardisedConv(inward, width, 1)
        self.conv2 = StandardisedConv(width, width, 3, stride, groups)
        self.conv3 = StandardisedConv(width, width, 3, 1, groups)
        self.conv4 = StandardisedConv(width, outward, 1)
        changes = inward != outward or stride != 1
        self.shortcut = StandardisedConv(inward, outward, 1) if changes else None
        self.squeeze = SqueezeExcite(outward)
        self.drop_path = DropPath(drop_path)
        self.gain = nn.Parameter(torch.zeros(1))  # a block begins as its shortcut; FSDP2 shards no scalars

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = activate(x) * self.beta
        if self.shortcut is not None:
            x = y if self.stride == 1 else F.avg_pool2d(y, 2, 2, ceil_mode=True, count_include_pad=False)
            x = self.shortcut(x)
        y = self.conv2(activate(self.conv1(y)))
        y = self.conv4(activate(self.conv3(activate(y))))
        return x + self.drop_path(self.squeeze(y)) * (self.gain * self.alpha)


class Stage(nn.Module):
    """The first block takes the predicted variance back to 1, every block then adds α² to it."""

    def __init__(self, config: NFNetConfig, number: int, variance: float, rates: list[float]):
        super().__init__()
        inward = config.widths[number - 1] if number else config.stem
        width = config.widths[number]
        first = NFBlock(inward, width, 2 if number else 1, variance**-0.5, config, rates[0])
        rest = [
            NFBlock(width, width, 1, (1 + i * config.alpha**2) ** -0.5, config, rate)
            for i, rate in enumerate(rates[1:], 1)
        ]
        self.blocks = nn.ModuleList([first, *rest])
        self.variance = 1 + len(rates) * config.alpha**2  # of what leaves it

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        for block in self.blocks:
            x = block(x)
        return x


class NFNet(ConvNet):
    def __init__(self, config: NFNetConfig):
        super().__init__(config)
        self.stem = Stem(config.channels, config.stem)
        rates = torch.tensor(rising(config.drop_path, sum(config.blocks)), device="cpu").split(config.blocks)
        self.stages = nn.ModuleList()
        variance = 1.0
        for i, of_stage in enumerate(rates):
            self.stages.append(Stage(config, i, variance, of_stage.tolist()))
            variance = self.stages[-1].variance
        self.final = StandardisedConv(config.widths[-1], config.width, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.make_classifier(config.width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: normal, as large as keeps the variance; blocks begin as their shortcuts."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("gain"):
                parameter.fill_(1)
            elif name.startswith("classifier."):
                parameter.normal_(std=0.01)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        for module in self.modules():
            if isinstance(module, NFBlock):
                module.gain.zero_()

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = self.stem(channels_last(pixels))
        for stage in self.stages:
            x = stage(x)
        return activate(self.final(x))

    def head(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; the pooled features themselves without a classifier."""
        return self.classifier(self.dropout(self.pool(features)))
