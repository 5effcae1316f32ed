"""Columns of a store: what one holds, and gathering from it, wherever its rows lie in memory-mapped chunks."""

from collections.abc import Sequence
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
    """A fixed-stride column: [N, *shape], in as many chunks as the files have."""

    def __init__(self, column: Column, arrays: Sequence[pa.Array]):
        self.shape, self.dtype = column.shape, column.numpy
        self._chunks = [_numbers(a, column).reshape(len(a), *column.shape) for a in arrays]
        self._bounds = np.cumsum([0, *map(len, arrays)])

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

    def __init__(self, column: Column, arrays: Sequence[pa.Array]):
        self._text, self.dtype = column.dtype == "text", column.numpy
        self._offsets = [np.frombuffer(a.buffers()[1], np.int64, len(a) + 1, a.offset * 8) for a in arrays]
        self._chunks = [_bytes(a) if column.bytes else _numbers(a.values, column) for a in arrays]
        self._bounds = np.cumsum([0, *map(len, self._chunks)])

    def __len__(self) -> int:
        return sum(len(offsets) - 1 for offsets in self._offsets)

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
        """One record where it lies in the file, without a copy."""
        start = self.starts[row]
        chunk = int(np.searchsorted(self._bounds, start, side="right")) - 1
        if chunk == len(self._chunks):  # nothing lies behind the end, where an empty last record begins
            return np.empty(0, self.dtype)
        begin = int(start - self._bounds[chunk])
        return self._chunks[chunk][begin : begin + int(self.lengths[row])]

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


def _numbers(array: pa.Array, column: Column) -> np.ndarray:
    """The numbers of a column's chunk where they lie, without a copy."""
    flat = array.values if pa.types.is_fixed_size_list(array.type) else array
    return flat.to_numpy(zero_copy_only=True)


def _bytes(array: pa.Array) -> np.ndarray:
    data = array.buffers()[2]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


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
