"""Columns of a store: what one holds, and gathering from it, wherever its rows lie in memory-mapped chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

# From here on a copy of its own for each row or range is faster than a table of single places.
LONG_RANGE = 64  # elements
LARGE_ROW = 4096  # bytes


@dataclass(frozen=True)
class Column:
    """What each record holds: an array of `shape` (fixed stride), or with `ragged` a one-dimensional one of any length.

    dtype is numpy's name of a number type; "text", a string, stored ragged in UTF-8; or "image": pixels (uint8) of one
    shape, [H, W, C] (or [T, H, W, C], [H, W]), or with `ragged` the bytes of encoded files (data/pictures.py).
    """

    dtype: str
    shape: tuple[int, ...] = ()
    ragged: bool = False

    @property
    def numpy(self) -> np.dtype:
        return np.dtype("uint8" if self.dtype in ("text", "image") else self.dtype)

    @property
    def varies(self) -> bool:
        return self.ragged or self.dtype == "text"

    @property
    def bytes(self) -> bool:
        """Whether a record is a string of bytes to Arrow, not a list of numbers."""
        return self.dtype == "text" or (self.dtype == "image" and self.ragged)

    def arrow(self) -> pa.DataType:
        if self.bytes:
            return pa.large_string() if self.dtype == "text" else pa.large_binary()
        element = pa.from_numpy_dtype(self.numpy)
        if self.ragged:
            return pa.large_list(pa.field("item", element, nullable=False))
        return pa.list_(pa.field("item", element, nullable=False), int(np.prod(self.shape))) if self.shape else element

    def record(self, name: str, value) -> np.ndarray:
        """One record's value as the array that is stored. Raises ValueError when it does not fit."""
        if self.dtype == "text":
            return np.frombuffer(value.encode(), np.uint8)
        if self.bytes and isinstance(value, bytes | bytearray | memoryview):
            return np.frombuffer(value, np.uint8)
        array = np.asarray(value, self.numpy)
        if array.ndim != 1 if self.ragged else array.shape != self.shape:
            raise ValueError(f"{name} has shape {array.shape}")
        return array

    def join(self, arrays: Sequence[np.ndarray]) -> pa.Array:
        """Several records' arrays as one chunk of the column."""
        values = np.concatenate([a.reshape(-1) for a in arrays]) if arrays else np.empty(0, self.numpy)
        if not self.varies:
            flat = pa.array(values)
            return pa.FixedSizeListArray.from_arrays(flat, type=self.arrow()) if self.shape else flat
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(a) for a in arrays], out=offsets[1:])
        if self.bytes:
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
            return pa.Array.from_buffers(self.arrow(), len(arrays), buffers)
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=self.arrow())


class Strided:
    """A fixed-stride column: [N, *shape], in as many chunks as the files have.

    rows: where each chunk begins, and the end: Int[P + 1]. chunk: opens one, when it is first needed; as with `Ragged`.
    """

    def __init__(self, column: Column, rows: np.ndarray, chunk: Callable[[int], pa.Array]):
        self.shape, self.dtype = column.shape, column.numpy
        self._chunks = _Opened(
            len(rows) - 1, lambda i: _numbers(found := chunk(i), column).reshape(len(found), *column.shape)
        )
        self._bounds = rows

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The records at these places, [len(rows), *shape], in `out` when it is given.

        One copy, without the interpreter's lock. Rows sorted within a batch are fastest: neighbours are taken together.
        """
        return _take(self._chunks, self._bounds, np.asarray(rows, np.int64), _into(out, rows, self.shape, self.dtype))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.gather(np.array([row]))[0]


class Ragged:
    """A column of arrays of any length, end to end. `starts` and `lengths` (Int[N]) say where each lies."""

    def __init__(self, column: Column, rows: np.ndarray, chunk: Callable[[int], pa.Array]):
        self._text, self.dtype = column.dtype == "text", column.numpy
        self._rows = rows
        self._offsets = _Opened(len(rows) - 1, lambda i: _offsets(chunk(i)))
        self._chunks = _Opened(
            len(rows) - 1, lambda i: _bytes(chunk(i)) if column.bytes else _numbers(chunk(i).values, column)
        )

    def __len__(self) -> int:
        return int(self._rows[-1])

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Where the elements of each chunk begin, and the end."""
        return np.cumsum([0, *map(len, self._chunks)])

    @cached_property
    def starts(self) -> np.ndarray:
        found = [offsets[:-1] + before for offsets, before in zip(self._offsets, self._bounds)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        found = [np.diff(offsets) for offsets in self._offsets]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def __getitem__(self, row: int) -> np.ndarray | str:
        """One record: an array, or the string of a text column."""
        found = self.view(row)
        return found.tobytes().decode() if self._text else found.copy()

    def view(self, row: int) -> np.ndarray:
        """One record where it lies in the file, without a copy; no other chunk is opened."""
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        chunk = int(np.searchsorted(self._rows, place, side="right")) - 1
        begin, end = self._offsets[chunk][place - self._rows[chunk] :][:2].tolist()
        return self._chunks[chunk][begin:end]

    def gather(self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The elements [start, start + length) of every range, end to end. A range lies within one record."""
        starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
        total = int(lengths.sum())
        if out is None:
            out = np.empty(total, self.dtype)
        elif out.shape != (total,) or out.dtype != self.dtype:
            raise ValueError(f"out is {out.dtype}{list(out.shape)} instead of {self.dtype}{[total]}")
        if total > LONG_RANGE * len(lengths):
            self._copy(starts, lengths, out)
            return out
        before = np.cumsum(lengths) - lengths
        places = np.repeat(starts - before, lengths) + np.arange(total)
        return _take(self._chunks, self._bounds, places, out)

    def _copy(self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        """Long ranges, each by one copy."""
        full = lengths > 0
        starts, lengths = starts[full], lengths[full]
        if starts.min() < 0 or (starts + lengths).max() > self._bounds[-1]:
            raise IndexError(f"a range outside of {self._bounds[-1]} elements")
        which = np.searchsorted(self._bounds, starts, side="right") - 1
        end = 0
        for chunk, begin, length in zip(which.tolist(), (starts - self._bounds[which]).tolist(), lengths.tolist()):
            out[end : end + length] = self._chunks[chunk][begin : begin + length]
            end += length


class _Opened(Sequence[np.ndarray]):
    """Arrays of a column, one for each chunk, each made by `make` when it is first asked for, and kept."""

    def __init__(self, count: int, make: Callable[[int], np.ndarray]):
        self._made: list[np.ndarray | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, chunk: int) -> np.ndarray:
        found = self._made[chunk]
        if found is None:  # two threads may both make it, the same
            found = self._made[chunk] = self._make(chunk)
        return found


def _offsets(array: pa.Array) -> np.ndarray:
    """Where each record of a ragged column's chunk begins in its elements, and the end."""
    return np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)


def _numbers(array: pa.Array, column: Column) -> np.ndarray:
    """The numbers of a column's chunk where they lie, without a copy. Not `to_numpy`, which imports pandas first."""
    flat = array.values if pa.types.is_fixed_size_list(array.type) else array
    return np.frombuffer(flat.buffers()[1] or b"", column.numpy, len(flat), flat.offset * column.numpy.itemsize)


def _bytes(array: pa.Array) -> np.ndarray:
    return np.frombuffer(array.buffers()[2] or b"", np.uint8)


def _into(out: np.ndarray | None, rows: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    wanted = (len(rows), *shape)
    if out is None:
        return np.empty(wanted, dtype)
    if out.shape != wanted or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype}{list(out.shape)} instead of contiguous {dtype}{list(wanted)}")
    return out


def _take(chunks: Sequence[np.ndarray], bounds: np.ndarray, places: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`chunks`, as if joined, at `places`; chunk i holds the places [bounds[i], bounds[i + 1])."""
    if not len(places):
        return out
    if places.min() < 0 or places.max() >= bounds[-1]:
        raise IndexError(f"places {places.min()} to {places.max()} of {bounds[-1]}")
    # Everything is inside, so that "clip" never clips: with numpy's default mode, `take` would go through a buffer.
    if len(chunks) == 1:
        return chunks[0].take(places, axis=0, out=out, mode="clip")
    which = np.searchsorted(bounds, places, side="right") - 1
    if out.nbytes < LARGE_ROW * len(places) and (np.diff(which) < 0).any():
        order = np.argsort(which, kind="stable")  # small rows: sorting them costs less than taking them one by one
        out[order] = _take(chunks, bounds, places[order], np.empty_like(out))
        return out
    local = places - bounds[which]
    edges = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(places)]
    for begin, end, chunk in zip(edges, edges[1:], which[edges[:-1]].tolist()):  # runs within one chunk
        chunks[chunk].take(local[begin:end], axis=0, out=out[begin:end], mode="clip")
    return out
