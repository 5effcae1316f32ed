"""Pictures in records: raw pixels of one shape, or the bytes of encoded files with a column that tells their sizes.

Raw pixels are one column of fixed stride, so that a batch is one copy. Encoded ones are three: `image`, bytes end to
end; `image.size`, Int32[3]; and for clips `image.ends`, where in its bytes each frame ends.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onefold.data.columns import Column, Ragged, Strided

SIZE, ENDS = ".size", ".ends"


def picture_columns(name: str = "image", shape: tuple[int, ...] | None = None, clip: bool = False) -> dict[str, Column]:
    """The columns of pictures called `name`.

    shape: of raw pixels: [H, W, C], [T, H, W, C] for clips, [H, W] for masks; None: encoded. clip: an encoded record is
    several frames.
    """
    if shape is not None:
        return {name: Column("image", tuple(shape))}
    columns = {name: Column("image", ragged=True), name + SIZE: Column("int32", (3,))}
    return columns | ({name + ENDS: Column("int64", ragged=True)} if clip else {})


def encoded_record(name: str, frames: Sequence[bytes], size: Sequence[int], clip: bool = False) -> dict[str, Any]:
    """What an encoded picture, or with `clip` frames one after another, adds to a record. size: (H, W, C)."""
    if len(frames) != 1 and not clip:
        raise ValueError(f"{name} takes one picture, not {len(frames)} frames")
    record: dict[str, Any] = {name: b"".join(frames), name + SIZE: size}
    return record | ({name + ENDS: np.cumsum([len(frame) for frame in frames])} if clip else {})


class Pictures:
    """A picture column opened for reading; `records.pictures("image")` makes it."""

    def __init__(self, name: str, views: Mapping[str, Ragged | Strided]):
        self._pixels = views[name]
        self._sizes = views.get(name + SIZE)
        self._ends = views.get(name + ENDS)

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of every picture, [H, W, C] (clips [T, H, W, C], masks [H, W]), where raw pixels are kept; else None."""
        return self._pixels.shape if isinstance(self._pixels, Strided) else None

    @property
    def sizes(self) -> np.ndarray:
        """(height, width, channels) of each, Int32[N, 3]."""
        if isinstance(self._sizes, Strided):
            return self._sizes.gather(np.arange(len(self)))
        shape = self.shape or ()
        size = (*shape, 1) if len(shape) == 2 else shape[-3:]
        return np.broadcast_to(np.array(size, np.int32), (len(self), 3))

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Raw pixels, UInt8[len(rows), *shape], in one copy; fastest where `rows` are sorted."""
        if not isinstance(self._pixels, Strided):
            raise TypeError("these pictures are encoded: decode what `encoded` gives")
        return self._pixels.gather(rows, out)

    def encoded(self, row: int, frame: int = 0) -> memoryview:
        """The bytes of one encoded picture (of a clip, of one frame) where they lie in the file, without a copy."""
        if not isinstance(self._pixels, Ragged):
            raise TypeError("these pictures are raw pixels: use `gather`")
        data = self._pixels.view(row).data
        if self._ends is None:
            if frame:
                raise IndexError(f"frame {frame} of a single picture")
            return data
        ends = self._ends[row]
        return data[int(ends[frame - 1]) if frame else 0 : int(ends[frame])]

    def frames(self, row: int) -> int:
        """How many frames a record has: 1, unless it is a clip."""
        if isinstance(self._ends, Ragged):
            return int(self._ends.lengths[row])
        return self.shape[0] if self.shape and len(self.shape) == 4 else 1
