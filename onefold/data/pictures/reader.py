"""How a model of pictures looks at one: what is kept of it, at which size, in which numbers, and what it can name."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.frame import CentreCrop, Frame, Resize

FILE = "pictures.json"


class PictureReader(Config):
    """Shorter side to `resize`, the centre `side` x `side` of that, (value / 255 - mean) / std.

    squeeze: not the shorter side but both become `resize`, so that without one the whole picture is squeezed into
    `side` x `side`, whatever its aspect ratio. A `resize` below `side` counts as `side`.
    """

    side: int
    resize: int | None = None  # None: `side`
    squeeze: bool = False
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    classes: tuple[str, ...] = ()  # what each output of the classifier means

    @model_validator(mode="after")
    def _of_each_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                fits = f"give 1 or {self.channels}"
                raise UserError(f"{name} has {len(values)} values for pictures of {self.channels} channels: {fits}")
        return self

    def frame(self) -> Frame:
        """What is cut out of a picture."""
        share = min(1.0, self.side / (self.resize or self.side))
        if not self.squeeze:
            return CentreCrop(side=self.side, share=share, interpolation=self.interpolation).build()
        whole = Resize(side=self.side, interpolation=self.interpolation).build()
        return whole if share == 1 else replace(whole, boxes=partial(_middle, share))

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The one in a folder; None when there is none. Raises UserError when it is damaged."""
        path = folder / FILE
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            return cls.from_json(text)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _middle(share: float, sizes: np.ndarray, draws: Draws) -> np.ndarray:
    """Int64[B, 4]: this share of each side."""
    edges = np.maximum(1, np.rint(sizes * share)).astype(np.int64)
    return np.concatenate(((sizes - edges) // 2, edges), axis=1).astype(np.int64)
