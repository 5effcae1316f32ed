"""Random erasing: a rectangle of the picture is lost (Zhong et al. 2017, arXiv 1708.04896)."""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.data.transforms.base import Pictures, Transform
from onefold.data.transforms.draws import Draws


class RandomErasing(Config):
    """With this probability, a rectangle of random area (a share of the picture), shape and place is overwritten."""

    kind: Literal["random_erasing"] = "random_erasing"
    probability: float = Field(default=0.25, ge=0, le=1)
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 10 / 3)  # width / height
    fill: Literal["noise", "zeros"] = "noise"  # noise: every value is equally likely

    def build(self) -> Transform:
        return self._erased

    def _erased(self, pictures: Pictures, draws: Draws) -> Pictures:
        height, width, channels = pictures.images.shape[1:]
        rows, uniform = draws.which(self.probability), draws.uniform(4)
        if not len(rows):
            return pictures
        area, shape, down, right = uniform[rows].T
        area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * area)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + (high - low) * shape)
        # What does not fit is cut off instead of drawn again.
        tall = np.clip(np.rint(np.sqrt(area / ratio)), 1, height)
        wide = np.clip(np.rint(np.sqrt(area * ratio)), 1, width)
        top, left = np.floor(down * (height - tall + 1)), np.floor(right * (width - wide + 1))
        lost = inside((height, width), top, left, tall, wide)
        noise = np.uint8(0)
        if self.fill == "noise":
            count = -(-height * width * channels // 8)  # eight bytes from each number
            noise = draws.bits(count)[rows].view(np.uint8)[:, : height * width * channels]
            noise = noise.reshape(-1, height, width, channels)[lost]
        chosen = pictures.images[rows]
        chosen[lost] = noise
        pictures.images[rows] = chosen
        return pictures


def inside(size: tuple[int, int], top: np.ndarray, left: np.ndarray, tall: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Bool[B, H, W]: which pixels lie in their row's rectangle."""
    lines, columns = np.arange(size[0]), np.arange(size[1])
    down = (lines >= top[:, None]) & (lines < (top + tall)[:, None])
    right = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return down[:, :, None] & right[:, None, :]
