"""RandAugment: a few operations, drawn anew for every picture, all of one strength (Cubuk et al. 2019, 1909.13719)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.pictures.transforms import light
from onefold.data.pictures.transforms.base import Pictures, Transform, blocks

STRONGEST = 10.0
# At the greatest magnitude: degrees, pixels moved sideways per line, share of the picture, factor beyond 1.
ROTATION, SHEAR, SHIFT, FACTOR = 30.0, 0.3, 0.45, 0.9


class RandAugment(Config):
    """`operations` of the fourteen of the paper, one after another, more disturbing the greater the magnitude.

    Magnitudes are normally distributed around `magnitude` with standard deviation `spread`, from 0 to 10. `fill` is
    what comes in where a picture moves out.
    """

    kind: Literal["rand_augment"] = "rand_augment"
    operations: int = Field(default=2, ge=1)
    magnitude: float = Field(default=9.0, ge=0, le=STRONGEST)
    spread: float = Field(default=0.5, ge=0)
    probability: float = Field(default=1.0, ge=0, le=1)  # of each operation that was drawn
    fill: int = Field(default=128, ge=0, le=255)

    def build(self) -> Transform:
        def transform(pictures: Pictures, draws: Draws) -> Pictures:
            for _ in range(self.operations):
                which, sign, kept = draws.uniform(3).T
                magnitude = np.clip(self.magnitude + self.spread * draws.normal(), 0, STRONGEST) / STRONGEST
                signed = np.where(sign < 0.5, -magnitude, magnitude)
                number = np.where(kept < self.probability, (which * len(OPERATIONS)).astype(np.int64), -1)
                for i, operation in enumerate(OPERATIONS):
                    for rows in blocks(np.flatnonzero(number == i), pictures.images):
                        pictures.images[rows] = operation(pictures.images[rows], signed[rows], self.fill)
            return pictures

        return transform


def warped(images: np.ndarray, matrices: np.ndarray, fill: int) -> np.ndarray:
    """Every pixel taken from where its row's matrix points, else `fill`: nearest neighbour.

    matrices: Float64[B, 2, 3], from (x, y, 1) in the result to (x, y) in the source; pixels have their centres at 0.5.
    """
    batch, height, width, channels = images.shape
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    m = matrices[:, :, :, None, None]
    column = np.floor(m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]).astype(np.int64)
    line = np.floor(m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]).astype(np.int64)
    outside = (column < 0) | (column >= width) | (line < 0) | (line >= height)
    place = (np.arange(batch)[:, None, None] * height + line) * width + column
    place[outside] = 0
    found = images.reshape(-1, channels).take(place, axis=0)
    found[outside] = fill
    return found


def rotated(images: np.ndarray, degrees: np.ndarray, fill: int) -> np.ndarray:
    """Turned about the middle, counter-clockwise."""
    middle_x, middle_y = images.shape[2] / 2, images.shape[1] / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrices = [[cos, -sin, middle_x - cos * middle_x + sin * middle_y]]
    matrices.append([sin, cos, middle_y - sin * middle_x - cos * middle_y])
    return warped(images, np.moveaxis(np.array(matrices), 2, 0), fill)


def _moved(images: np.ndarray, place: tuple[int, int], amount: np.ndarray, fill: int) -> np.ndarray:
    """Warped by the identity with `amount` (Float[B]) at one place of its matrix."""
    matrices = np.tile(np.eye(2, 3), (len(images), 1, 1))
    matrices[:, place[0], place[1]] = amount
    return warped(images, matrices, fill)


# Of pictures UInt8[n, H, W, C], signed magnitudes from -1 to 1 (Float[n]) and what fills the void.
Operation = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
OPERATIONS: tuple[Operation, ...] = (
    lambda images, m, fill: images,
    lambda images, m, fill: light.autocontrast(images),
    lambda images, m, fill: light.equalize(images),
    lambda images, m, fill: light.solarize(images, 256 - 256 * abs(m)),
    lambda images, m, fill: light.posterize(images, 8 - (4 * abs(m)).astype(np.int64)),
    lambda images, m, fill: light.brightness(images, 1 + FACTOR * m),
    lambda images, m, fill: light.contrast(images, 1 + FACTOR * m),
    lambda images, m, fill: light.saturation(images, 1 + FACTOR * m),
    lambda images, m, fill: light.sharpness(images, 1 + FACTOR * m),
    lambda images, m, fill: rotated(images, ROTATION * m, fill),
    lambda images, m, fill: _moved(images, (0, 1), SHEAR * m, fill),
    lambda images, m, fill: _moved(images, (1, 0), SHEAR * m, fill),
    lambda images, m, fill: _moved(images, (0, 2), SHIFT * m * images.shape[2], fill),
    lambda images, m, fill: _moved(images, (1, 2), SHIFT * m * images.shape[1], fill),
)
