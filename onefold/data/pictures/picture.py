"""A picture before it is decoded, and something to iterate over for pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onefold.data.own_splits import OwnSplit
from onefold.data.pictures.files import read_file


@dataclass(frozen=True)
class Picture:
    """A picture and where it came from: `pixels` (UInt8[H, W, C]), or `content`, a file or its bytes.

    split: where the source says it belongs; None: that is to be chosen.
    """

    name: str
    label: str | None = None
    pixels: np.ndarray | None = None
    content: bytes | Path | None = None
    split: OwnSplit = None

    @property
    def where(self) -> str:
        """For errors: its file, or else its name."""
        return str(self.content) if isinstance(self.content, Path) else self.name

    @property
    def data(self) -> bytes | None:
        """The bytes of its file, read when they are asked for. Raises BadPicture when they cannot be."""
        return read_file(self.content) if isinstance(self.content, Path) else self.content

    @property
    def bytes(self) -> int:
        """Of its file or pixels, which need not be read; 0 where nobody can tell."""
        if self.pixels is not None:
            return self.pixels.nbytes
        try:
            return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content or b"")
        except (OSError, ValueError):
            return 0


@dataclass(frozen=True)
class PictureSource:
    """Something to iterate over for pictures, more than once. classes: where the source itself names them, in order."""

    path: str
    read: Callable[[], Iterator[Picture]]
    classes: tuple[str, ...] | None = None

    def __iter__(self) -> Iterator[Picture]:
        return self.read()
