"""Random erasing: a rectangle of the picture is lost (Zhong et al. 2017, arXiv 1708.04896)."""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures, Transform


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
        area, shape, down, right = uniform[rows].T
        area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * area)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + (high - low) * shape)
        # What does not fit is cut off instead of drawn again.
        tall = np.clip(np.rint(np.sqrt(area / ratio)), 1, height).astype(np.int64)
        wide = np.clip(np.rint(np.sqrt(area * ratio)), 1, width).astype(np.int64)
        top, left = (down * (height - tall + 1)).astype(np.int64), (right * (width - wide + 1)).astype(np.int64)
        for place, row in enumerate(rows):
            y, x, h, w = (int(v[place]) for v in (top, left, tall, wide))
            lost = pictures.images[row, y : y + h, x : x + w]
            if self.fill == "zeros":
                lost[:] = 0
            else:  # eight bytes from each number
                noise = draws.take(rows[place : place + 1]).bits(-(-lost.size // 8)).view(np.uint8)
                lost[:] = noise[0, : lost.size].reshape(h, w, channels)
        return pictures
