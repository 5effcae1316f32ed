"""Which part of a picture becomes the square that a model sees: the whole, its middle, or a random part of it.

A frame says where to cut before anything is decoded, so that a JPEG is read at the smallest scale that will do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures

Interpolation = Literal["bilinear", "bicubic"]  # antialiased, as Pillow does it
TRIES = 10  # shapes drawn for a picture before the largest one that fits is taken instead


@dataclass(frozen=True)
class Frame:
    """`boxes(sizes, draws)`: Int64[B, 4], the top, left, height and width to cut from pictures of sizes Int[B, 2]."""

    side: int
    interpolation: Interpolation
    boxes: Callable[[np.ndarray, Draws], np.ndarray]
    random: bool = False  # whether boxes depend on what is drawn

    def keeps(self, height: int, width: int) -> bool:
        """Whether it leaves pictures of this size as they are."""
        whole = (0, 0, self.side, self.side)
        box = self.boxes(np.array([[height, width]]), Draws(0, 0, np.zeros(1, np.int64)))
        return not self.random and (height, width) == whole[2:] and box.tolist() == [[*whole]]

    def __call__(self, pictures: Pictures, draws: Draws) -> Pictures:
        images = pictures.images
        boxes = self.boxes(np.tile(images.shape[1:3], (len(images), 1)), draws)
        out = pictures.slots.empty((len(images), self.side, self.side, images.shape[3]))
        if not self.random:
            top, left, height, width = boxes[0]
            out[:] = scaled(images[:, top : top + height, left : left + width], self.side, self.interpolation)
        else:
            for image, (top, left, height, width), place in zip(images, boxes, out):
                part = image[None, top : top + height, left : left + width]
                place[:] = scaled(part, self.side, self.interpolation)[0]
        return pictures.but(images=out)


class Resize(Config):
    """The whole picture, squeezed into a square."""

    kind: Literal["resize"] = "resize"
    side: int | None = Field(default=None, ge=1)  # None: what the data say
    interpolation: Interpolation = "bilinear"

    def build(self, side: int | None = None) -> Frame:
        """side: of the data, unless the frame has its own; so with every frame."""

        def boxes(sizes: np.ndarray, draws: Draws) -> np.ndarray:
            return np.concatenate((np.zeros_like(sizes), sizes), axis=1).astype(np.int64)

        return Frame(_side(self.side, side), self.interpolation, boxes)


class CentreCrop(Config):
    """The square in the middle, whose side is a `share` of the picture's shorter one."""

    kind: Literal["centre_crop"] = "centre_crop"
    side: int | None = Field(default=None, ge=1)  # None: what the data say
    share: float = Field(default=1.0, gt=0, le=1)  # 224 of 256 pixels: 0.875
    interpolation: Interpolation = "bilinear"

    def build(self, side: int | None = None) -> Frame:
        def boxes(sizes: np.ndarray, draws: Draws) -> np.ndarray:
            edge = np.maximum(1, np.rint(sizes.min(1) * self.share)).astype(np.int64)
            return np.stack((*((sizes - edge[:, None]) // 2).T, edge, edge), axis=1)

        return Frame(_side(self.side, side), self.interpolation, boxes)


class RandomResizedCrop(Config):
    """A part of random area, aspect ratio and place (Szegedy et al. 2015, arXiv 1409.4842, section 6)."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    side: int | None = Field(default=None, ge=1)  # None: what the data say
    area: tuple[float, float] = (0.08, 1.0)  # smallest and largest share of the picture
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # narrowest and widest, width / height
    interpolation: Interpolation = "bilinear"

    def build(self, side: int | None = None) -> Frame:
        return Frame(_side(self.side, side), self.interpolation, self._boxes, random=True)

    def _boxes(self, sizes: np.ndarray, draws: Draws) -> np.ndarray:
        height, width = sizes[:, :1].astype(np.int64), sizes[:, 1:2].astype(np.int64)
        area = height * width * _between(self.area, draws.uniform(TRIES))
        ratio = np.exp(_between((math.log(self.ratio[0]), math.log(self.ratio[1])), draws.uniform(TRIES)))
        tall, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
        first = fits.argmax(1)[:, None]
        found = [np.take_along_axis(x, first, 1) for x in (tall, wide)]
        # Where nothing fits: the largest part in the middle whose aspect ratio is allowed.
        narrow, broad = self.ratio
        middle = np.minimum(height, np.rint(width / narrow)), np.minimum(width, np.rint(height * broad))
        none = ~fits.any(1, keepdims=True)
        tall, wide = (np.where(none, np.maximum(m, 1), f).astype(np.int64) for m, f in zip(middle, found))
        down, right = (np.where(none[:, 0], 0.5, u) for u in draws.uniform(2).T)
        top = (down * (height - tall + 1)[:, 0]).astype(np.int64)
        left = (right * (width - wide + 1)[:, 0]).astype(np.int64)
        return np.stack((top, left, tall[:, 0], wide[:, 0]), axis=1)


def scaled(images: np.ndarray, side: int, interpolation: Interpolation) -> np.ndarray:
    """UInt8[B, H, W, C] → UInt8[B, side, side, C]"""
    if images.shape[1:3] == (side, side):
        return images
    # Whole and in one piece: torch reads that faster than a part of something else, and has no read-only tensors.
    own = np.require(images, requirements=["C", "W"])
    channels_first = torch.from_numpy(own).permute(0, 3, 1, 2)
    found = F.interpolate(channels_first, (side, side), mode=interpolation, antialias=True)
    return found.permute(0, 2, 3, 1).numpy()


def _side(own: int | None, given: int | None) -> int:
    if (side := own or given) is None:
        raise UserError("which size are pictures to be cut to? give side")
    return side


def _between(ends: tuple[float, float], uniform: np.ndarray) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * uniform
