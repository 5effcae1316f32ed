"""What the convolutional networks share: what is made of each place of a picture is averaged and classified."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.adopting import adopt
from onefold.models.vision.depths import depth_of
from onefold.nn.linear import Linear


class ConvNet(nn.Module):
    """`features` reads pictures, `head` makes logits of classes; calling the model does both.

    A network lays its layers, the `classifier` last; its config has the number of `classes` and the `blocks` of stages.
    """

    entry_points = ("features", "head")  # what a parallel plan has to wrap

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    def make_classifier(self, width: int) -> nn.Module:
        """The classifier of features of this width; nothing without classes."""
        return Linear(width, self.config.classes) if self.config.classes else nn.Identity()

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """What the model makes of each place of the picture."""
        raise NotImplementedError

    def pool(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D"]:
        """One vector a picture: the mean of its places."""
        return features.mean((2, 3))

    def head(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes; the pooled features themselves without a classifier."""
        return self.classifier(self.pool(features))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        return self.head(self.features(pixels))

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another network of this shape, whatever its classes, fitted to this one."""
        return adopt(self, weights)

    @property
    def depths(self) -> int:
        """The depth of the classifier, where `depth_of` ends."""
        return sum(self.config.blocks) + 1

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (stem) to `depths` (classifier, and what stands before it)."""
        return depth_of(name, self.config.blocks)


def check_stages(blocks: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Errors: ValueError, for a config's validator, unless there is a width for each stage of blocks."""
    if len(blocks) != len(widths) or not blocks:
        raise ValueError(f"blocks ({len(blocks)} stages) and widths ({len(widths)}) must be as many")


def channels_last(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The same numbers with the channels of a pixel side by side in memory: convolutions are faster so."""
    return pixels.contiguous(memory_format=torch.channels_last)
