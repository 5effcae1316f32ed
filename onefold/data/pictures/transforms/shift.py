"""Mirroring, and moving a picture about within its frame."""

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from pydantic import Field

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures, Transform


class Flip(Config):
    """Left and right exchanged, with this probability."""

    kind: Literal["flip"] = "flip"
    probability: float = Field(default=0.5, ge=0, le=1)

    def build(self) -> Transform:
        def transform(pictures: Pictures, draws: Draws) -> Pictures:
            rows = draws.which(self.probability)
            # One element a pixel, so that its channels keep their order.
            pixels = pictures.images.view(np.dtype((np.void, pictures.images.shape[3])))[..., 0]
            pixels[rows] = pixels[rows][:, :, ::-1]
            return pictures

        return transform


class PadCrop(Config):
    """The picture with `pad` pixels of zeros (or its own mirrored border) around it, cut back to its size anywhere."""

    kind: Literal["pad_crop"] = "pad_crop"
    pad: int = Field(default=4, ge=1)
    border: Literal["zeros", "reflect"] = "zeros"

    def build(self) -> Transform:
        def transform(pictures: Pictures, draws: Draws) -> Pictures:
            batch, height, width, channels = pictures.images.shape
            padded = self._padded(pictures)
            down, right = (draws.uniform(2) * (2 * self.pad + 1)).astype(np.int64).T
            image, line, pixel, _ = padded.strides
            places = 2 * self.pad + 1
            # Every place that a picture can be cut at, as views: [B, places, places, H, W·C].
            cuts = as_strided(padded, (batch, places, places, height, width * channels), (image, line, pixel, line, 1))
            cut = cuts[np.arange(batch), down, right]
            return pictures.but(images=cut.reshape(pictures.images.shape))

        return transform

    def _padded(self, pictures: Pictures) -> np.ndarray:
        batch, height, width, channels = pictures.images.shape
        pad = self.pad
        if self.border == "reflect":
            return np.pad(pictures.images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect")
        padded = pictures.slots.empty((batch, height + 2 * pad, width + 2 * pad, channels))
        padded[:] = 0
        padded[:, pad:-pad, pad:-pad] = pictures.images
        return padded
