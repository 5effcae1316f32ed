"""How a model of pictures looks at one: what is kept of it, at which size, in which numbers, and what it can name."""

from pathlib import Path
from typing import Literal, Self

from onefold.core.config import Config

FILE = "pictures.json"


class PictureReader(Config):
    """Shorter side to `resize`, the centre `side` x `side` of that, (value / 255 - mean) / std."""

    side: int
    resize: int | None = None  # None: `side`
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    classes: tuple[str, ...] = ()  # what each output of the classifier means

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The one in a folder; None when there is none. Raises UserError when it is damaged."""
        path = folder / FILE
        try:
            return cls.from_json(path.read_text(), str(path))
        except FileNotFoundError:
            return None
