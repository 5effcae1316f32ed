"""A residual network whose block is spelled out, word by word: from ResNet to ConvNeXt (arXiv 2201.03545), and beside.

    pixels → stem → stages of blocks → mean → classifier

    "in norm act conv norm act out norm"    the bottleneck of ResNet (`after` the sum: another "act")
    "depthwise norm in act out scale"       the block of ConvNeXt

    in          1×1 convolution from the stream's width to the `inner` one
    out         and back
    conv        `kernel`×`kernel` convolution; the width stays
    depthwise   the same of each channel alone
    norm, act   `norm` and `activation`
    scale       a learned number for each channel

With those two words and the settings that belong to them it is, number for number, those two networks: resnet.py and
convnext.py are what one trains. This one is for asking which change made the difference.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config, unknown_name
from onefold.models.vision.convnet import ConvNet, channels_last, check_stages
from onefold.nn.drop_path import DropPath, rising
from onefold.nn.feedforward import Activation, activation
from onefold.nn.vision.batch_norm import BatchNorm
from onefold.nn.vision.depthwise import DepthwiseConv

WORDS = ("in", "out", "conv", "depthwise", "norm", "act", "scale")
LAYER_SCALE = 1e-6  # what "scale" begins with


class ResidualConfig(Config):
    """A residual network of one block count and one width for each stage."""

    kind: Literal["residual"] = "residual"
    image: int = 224  # pixels a side; others are read too
    channels: int = 3
    classes: int = 1000  # 0: no classifier
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)  # of the stream
    block: str = "in norm act conv norm act out norm"
    after: Literal["", "act"] = "act"  # the sum of block and shortcut
    inner: float = 0.25  # width between "in" and "out", as a share of the stream's
    kernel: int = 3
    norm: Literal["batch", "layer"] = "batch"
    activation: Activation = "relu"
    stem: Literal["conv", "patch"] = "conv"  # 7×7 of stride 2, and where that is not enough a maximum; or squares
    stem_width: int | None = 64  # None: that of the first stage
    stride: int = 4  # of the stem
    down: Literal["block", "apart"] = "block"  # where sides are halved: in the first block of a stage, or before it
    drop_path: float = 0.0  # of the last block, rising from 0 in the first

    @model_validator(mode="after")
    def _fits(self) -> "ResidualConfig":
        check_stages(self.blocks, self.widths)
        words = self.block.split()
        for word in words:
            if word not in WORDS:
                raise ValueError(
                    unknown_name(word, WORDS).replace("setting", "layer") + f"; layers: {', '.join(WORDS)}"
                )
        if [word for word in words if word in ("in", "out")] != ["in", "out"]:
            raise ValueError(f'block "{self.block}" must have one "in" and behind it one "out"')
        if words.count("conv") + words.count("depthwise") != 1:
            raise ValueError(f'block "{self.block}" must look around once: one "conv" or one "depthwise"')
        if "scale" in words[: words.index("out")]:
            raise ValueError(f'block "{self.block}" must have "scale" behind "out"')
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel ({self.kernel}) must be odd")
        if self.stem == "conv" and self.stride not in (2, 4):
            raise ValueError(f"the convolutions of a stem have stride 2 or 4, not {self.stride}")
        return self

    def build(self) -> "ResidualNet":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return ResidualNet(self)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of the channels of each place."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x * self.scale[:, None, None]


class Act(nn.Module):
    def __init__(self, name: Activation):
        super().__init__()
        self.function = activation(name)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.function(x)


class ResidualBlock(nn.Module):
    def __init__(self, config: ResidualConfig, inward: int, width: int, stride: int, drop_path: float):
        super().__init__()
        self.layers = nn.Sequential(*_spelled(config, inward, width, stride))
        self.drop_path = DropPath(drop_path)
        changes = inward != width or stride != 1
        self.shortcut = _normed(config, inward, width, 1, stride) if changes else nn.Identity()
        self.after = Act(config.activation) if config.after else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.after(self.shortcut(x) + self.drop_path(self.layers(x)))


class Stage(nn.Module):
    def __init__(self, config: ResidualConfig, inward: int, number: int, rates: list[float]):
        super().__init__()
        width, stride = config.widths[number], 2 if number else 1
        self.down = None
        if number and config.down == "apart":
            self.down = nn.Sequential(_norm(config, inward), nn.Conv2d(inward, width, 2, 2))
            inward, stride = width, 1
        self.blocks = nn.Sequential(
            ResidualBlock(config, inward, width, stride, rates[0]),
            *(ResidualBlock(config, width, width, 1, rate) for rate in rates[1:]),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.blocks(x if self.down is None else self.down(x))


class ResidualNet(ConvNet):
    """Where halving stands apart, the pooled features are normalised, as in ConvNeXt."""

    def __init__(self, config: ResidualConfig):
        super().__init__(config)
        width = config.stem_width or config.widths[0]
        self.stem = _stem(config, width)
        rates = torch.tensor(rising(config.drop_path, sum(config.blocks)), device="cpu").split(config.blocks)
        inward = (width, *config.widths)
        self.stages = nn.Sequential(*(Stage(config, inward[i], i, r.tolist()) for i, r in enumerate(rates)))
        self.norm = nn.LayerNorm(config.widths[-1], eps=1e-6) if config.down == "apart" else nn.Identity()
        self.classifier = self.make_classifier(config.widths[-1])
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: N(0, 0.02), whatever the block, so that networks differ in nothing else."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | BatchNorm):
                module.weight.fill_(1)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.stages(self.stem(channels_last(pixels)))

    def pool(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D"]:
        """One vector a picture: the mean of its places, normalised where the config says so."""
        return self.norm(features.mean((2, 3)))


def _spelled(config: ResidualConfig, inward: int, width: int, stride: int) -> list[nn.Module]:
    """The layers of a block that takes `inward` channels to `width`, and looks around in steps of `stride`."""
    layers: list[nn.Module] = []
    words = config.block.split()
    for word, following in zip(words, (*words[1:], "")):
        bias = _biased(config, following)
        match word:
            case "in" | "out":
                outward = width if word == "out" else round(config.inner * width)
                layers.append(nn.Conv2d(inward, outward, 1, bias=bias))
                inward = outward
            case "conv":
                layers.append(nn.Conv2d(inward, inward, config.kernel, stride, config.kernel // 2, bias=bias))
            case "depthwise":
                layers.append(DepthwiseConv(inward, config.kernel, stride, bias))
            case "norm":
                layers.append(_norm(config, inward))
            case "act":
                layers.append(Act(config.activation))
            case "scale":
                layers.append(Scale(inward))
    return layers


def _stem(config: ResidualConfig, width: int) -> nn.Module:
    if config.stem == "patch":
        return _normed(config, config.channels, width, config.stride, config.stride, padding=0)
    halved = _normed(config, config.channels, width, 7, 2)
    most = nn.MaxPool2d(3, 2, padding=1) if config.stride == 4 else nn.Identity()
    return nn.Sequential(*halved, Act(config.activation), most)


def _normed(
    config: ResidualConfig, inward: int, width: int, kernel: int, stride: int, padding: int | None = None
) -> nn.Sequential:
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(inward, width, kernel, stride, padding, bias=_biased(config, "norm"))
    return nn.Sequential(conv, _norm(config, width))


def _norm(config: ResidualConfig, width: int) -> nn.Module:
    return BatchNorm(width) if config.norm == "batch" else ChannelNorm(width)


def _biased(config: ResidualConfig, following: str) -> bool:
    """Batch normalisation would take away what a bias adds."""
    return not (following == "norm" and config.norm == "batch")
