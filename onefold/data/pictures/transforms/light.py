"""Changes of light and colour: functions of pictures UInt8[B, H, W, C] and, where they take one, a factor for each row.

A factor of 1 changes nothing; 0 gives what the operation is named for none of. Results agree with Pillow's, which
published augmentations were tuned with. Colours are those of RGB; other pictures have brightness only.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures, Transform, blocks

# Rec. 601 luminance of red, green and blue, in units of 2^-16.
LUMINANCE = np.array([19595, 38470, 7471], np.uint32)


class ColorJitter(Config):
    """Random brightness, contrast, saturation (factors from 1 - x to 1 + x) and hue (turned by up to x of the circle).

    In this order. probability: of changing a picture at all.
    """

    kind: Literal["color_jitter"] = "color_jitter"
    brightness: float = Field(default=0.4, ge=0)
    contrast: float = Field(default=0.4, ge=0)
    saturation: float = Field(default=0.4, ge=0)
    hue: float = Field(default=0.0, ge=0, le=0.5)
    probability: float = Field(default=1.0, ge=0, le=1)

    def build(self) -> Transform:
        steps = ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))

        def transform(pictures: Pictures, draws: Draws) -> Pictures:
            chosen, uniform = draws.which(self.probability), 2 * draws.uniform(len(steps) + 1) - 1
            for rows in blocks(chosen, pictures.images):
                images = pictures.images[rows]
                for i, (operation, strength) in enumerate(steps):
                    if strength:
                        images = operation(images, np.maximum(0, 1 + strength * uniform[rows, i]))
                if self.hue:
                    images = turned(images, self.hue * uniform[rows, -1])
                pictures.images[rows] = images
            return pictures

        return transform


def brightness(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return _blended(np.zeros((1, 1, 1, 1), np.float32), images, factor)


def contrast(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Away from, or towards, the mean luminance."""
    mean = luminance(images).reshape(len(images), -1).mean(1)
    return _blended(np.floor(mean + 0.5).astype(np.float32)[:, None, None, None], images, factor)


def saturation(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return images if images.shape[3] != 3 else _blended(luminance(images)[..., None], images, factor)


def sharpness(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Away from, or towards, the mean of 3x3 pixels with five times the weight for the middle; the border stays."""
    if min(images.shape[1:3]) < 3:
        return images
    wide = images.astype(np.uint16)
    lines = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth = images.copy()
    smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26  # total / 13, rounded
    return _blended(smooth, images, factor)


def solarize(images: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Values from `threshold` (Float[B], 0…256) on are inverted."""
    return np.where(images >= threshold[:, None, None, None], 255 - images, images)


def posterize(images: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Only the highest `bits` (Int[B], 0…8) of every value are kept."""
    mask = (256 - (1 << (8 - bits))).astype(np.uint8)
    return images & mask[:, None, None, None]


def autocontrast(images: np.ndarray) -> np.ndarray:
    """The values of every channel stretched over the whole range."""
    low, high = (f(axis=(1, 2), keepdims=True).astype(np.float64) for f in (images.min, images.max))
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    # By table, in double precision: a value halfway between two bytes must fall as it does there.
    values = np.arange(256)[None, :, None]
    offset = np.where(high > low, -low * scale, 0)
    table = np.clip(values * scale[:, 0] + offset[:, 0], 0, 255)
    return looked_up(images, table.astype(np.uint8))


def equalize(images: np.ndarray) -> np.ndarray:
    """The values of every channel spread so that each range of them is about equally frequent."""
    batch, height, width, channels = images.shape
    planes = images.reshape(batch, -1, channels).astype(np.int64)
    planes += 256 * (np.arange(batch)[:, None, None] * channels + np.arange(channels))
    counts = np.bincount(planes.reshape(-1), minlength=batch * channels * 256).reshape(batch, channels, 256)
    last = np.take_along_axis(counts, 255 - (counts[..., ::-1] > 0).argmax(-1)[..., None], -1)  # of the highest value
    step = (height * width - last) // 255
    before = np.cumsum(counts, axis=-1) - counts
    spread = np.minimum((before + step // 2) // np.maximum(step, 1), 255)
    several = (counts > 0).sum(-1, keepdims=True) > 1
    table = np.where((step > 0) & several, spread, np.arange(256)).astype(np.uint8)
    return looked_up(images, table.transpose(0, 2, 1))


def turned(images: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Hues turned by this much of the circle (Float[B]); lightest and darkest channel keep their values."""
    if images.shape[3] != 3:
        return images
    red, green, blue = np.moveaxis(images.astype(np.float32), 3, 0)
    high, low = images.max(3).astype(np.float32), images.min(3).astype(np.float32)
    span = high - low
    safe = np.maximum(span, 1)
    sector = np.where(
        high == red, (green - blue) / safe, np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    sector = sector + 6 * turn[:, None, None].astype(np.float32)
    # How far a channel lies below the highest is a trapezium over the hue: 1 in the third opposite its own colour.
    channels = [high - span * np.clip(2 - np.abs((sector + first) % 6 - 2), 0, 1) for first in (5, 3, 1)]
    return (np.stack(channels, axis=3) + 0.5).astype(np.uint8)


def luminance(images: np.ndarray) -> np.ndarray:
    """UInt8[B, H, W]"""
    if images.shape[3] != 3:
        return images[..., 0] if images.shape[3] == 1 else np.rint(images.mean(3)).astype(np.uint8)
    red, green, blue = (images[..., i] * LUMINANCE[i] for i in range(3))
    return ((red + green + blue + 0x8000) >> 16).astype(np.uint8)


def looked_up(images: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value replaced by that of its row's and channel's table, UInt8[B, 256, C]."""
    batch, channels = len(images), images.shape[3]
    rows, planes = np.arange(batch)[:, None, None, None] * (256 * channels), np.arange(channels)
    return table.reshape(-1).take(images.astype(np.int32) * channels + rows + planes)


def _blended(none: np.ndarray, images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """none + factor · (images - none), cut off at both ends."""
    none = none.astype(np.float32)
    found = images - none
    found *= factor.astype(np.float32)[:, None, None, None]
    found += none
    np.clip(found, 0, 255, out=found)
    return found.astype(np.uint8)
