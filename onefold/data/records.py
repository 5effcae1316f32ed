"""Records: the one store of samples. Columns in memory-mapped Arrow files, in shards with checksums, appendable.

A folder holds `records.json` (columns, shards, checksums) and shards `00000.arrow`, … in the Arrow IPC file format,
which any Arrow reader opens. The index is replaced last and at once, so a crash while appending loses nothing.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from onefold.core.errors import UserError
from onefold.core.files import atomic_write, digest_file, disk_error

INDEX = "records.json"
FORMAT, VERSION = "onefold.records", 1
CHUNK_BYTES = 32 << 20  # what a writer holds in memory at most, beyond one record
SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Column:
    """What each record holds: an array of `shape` (fixed stride), or with `ragged` a one-dimensional one of any length.

    dtype is numpy's name of a number type; "text" is a string, stored ragged in UTF-8.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    ragged: bool = False

    @property
    def numpy(self) -> np.dtype:
        return np.dtype("uint8" if self.dtype == "text" else self.dtype)

    @property
    def varies(self) -> bool:
        return self.ragged or self.dtype == "text"

    def arrow(self) -> pa.DataType:
        if self.dtype == "text":
            return pa.large_string()
        element = pa.from_numpy_dtype(self.numpy)
        if self.ragged:
            return pa.large_list(pa.field("item", element, nullable=False))
        return pa.list_(pa.field("item", element, nullable=False), int(np.prod(self.shape))) if self.shape else element


class RecordsDamaged(UserError):
    """A file of the store is missing, truncated or changed; the message names it."""


class Records:
    """A store opened for reading: `len(records)`, `records["tokens"]` is a `Strided` or `Ragged` view."""

    def __init__(self, path: str | Path, verify: bool = True):
        """`verify` compares all checksums (about a second per gigabyte). Raises RecordsDamaged naming the file."""
        self.path = Path(path)
        index = _read_index(self.path)
        self.columns = {name: Column(**{**c, "shape": tuple(c["shape"])}) for name, c in index["columns"].items()}
        chunks: list[pa.RecordBatch] = []
        for shard in index["shards"]:
            chunks += _open_shard(self.path / shard["file"], shard, verify)
        self._views = {
            name: (Ragged if column.varies else Strided)(column, [chunk.column(name) for chunk in chunks])
            for name, column in self.columns.items()
        }
        self._length = sum(shard["rows"] for shard in index["shards"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> "Ragged | Strided":
        return self._views[name]

    def ragged(self, name: str) -> "Ragged":
        view = self._views[name]
        if not isinstance(view, Ragged):
            raise TypeError(f"{name} has a fixed stride")
        return view

    def strided(self, name: str) -> "Strided":
        view = self._views[name]
        if not isinstance(view, Strided):
            raise TypeError(f"{name} is ragged")
        return view


class Strided:
    """A fixed-stride column: [N, *shape], in as many chunks as the files have."""

    def __init__(self, column: Column, arrays: Sequence[pa.Array]):
        self._shape = column.shape
        self._chunks = [_numbers(a, column).reshape(len(a), *column.shape) for a in arrays]
        self._bounds = np.cumsum([0, *map(len, arrays)])
        self._empty = np.empty((0, *column.shape), column.numpy)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The records at these places, [len(rows), *shape]."""
        rows = np.asarray(rows, np.int64)
        return _take(self._chunks, self._bounds, rows, self._empty)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.gather(np.array([row]))[0]


class Ragged:
    """A column of arrays of any length, end to end. `starts` and `lengths` (Int[N]) say where each lies."""

    def __init__(self, column: Column, arrays: Sequence[pa.Array]):
        self._text = column.dtype == "text"
        self._chunks = []
        starts, lengths, total = [], [], 0
        bounds = [0]
        for array in arrays:
            offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
            values = _text_bytes(array) if self._text else _numbers(array.values, column)
            self._chunks.append(values)
            starts.append(offsets[:-1] + total)
            lengths.append(np.diff(offsets))
            total += len(values)
            bounds.append(total)
        self.starts = np.concatenate(starts) if starts else np.empty(0, np.int64)
        self.lengths = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
        self._bounds = np.array(bounds)
        self._empty = np.empty(0, column.numpy)

    def __getitem__(self, row: int) -> np.ndarray | str:
        """One record: an array, or the string of a text column."""
        found = self.gather(self.starts[row : row + 1], self.lengths[row : row + 1])
        return found.tobytes().decode() if self._text else found

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The elements [start, start + length) of every range, end to end. A range lies within one record."""
        lengths = np.asarray(lengths, np.int64)
        before = np.cumsum(lengths) - lengths
        places = np.repeat(np.asarray(starts, np.int64) - before, lengths) + np.arange(int(lengths.sum()))
        return _take(self._chunks, self._bounds, places, self._empty)


class RecordsWriter:
    """`with RecordsWriter(path, columns) as out: out.add(tokens=…, name=…)`; `append` continues an existing store.

    Nothing counts until the block ends without an error: then the index names the new shards.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, Column],
        append: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.path, self.columns = Path(path), dict(columns)
        self._chunk_bytes, self._shard_bytes = chunk_bytes, shard_bytes
        self._schema = pa.schema([pa.field(name, c.arrow(), nullable=False) for name, c in self.columns.items()])
        self._shards: list[dict[str, Any]] = []
        if append and (self.path / INDEX).is_file():
            index = _read_index(self.path)
            if index["columns"] != _plain(self.columns):
                raise UserError(f"{self.path} holds other columns: {', '.join(index['columns'])}; nothing was appended")
            self._shards = index["shards"]
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in self.columns}
        self._held = 0
        self._open: _OpenShard | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._flush()
            self._close_shard()
            index = {"format": FORMAT, "version": VERSION, "columns": _plain(self.columns), "shards": self._shards}
            atomic_write(self.path / INDEX, json.dumps(index, indent=1))
        elif self._open is not None:
            self._open.abandon()

    def add(self, **record: Any) -> None:
        """One record: a value for every column."""
        if record.keys() != self.columns.keys():
            raise ValueError(f"a record needs {', '.join(self.columns)}; got {', '.join(record)}")
        for name, column in self.columns.items():
            value = record[name]
            if column.dtype == "text":
                array = np.frombuffer(value.encode(), np.uint8)
            else:
                array = np.asarray(value, column.numpy)
                if array.ndim != 1 if column.ragged else array.shape != column.shape:
                    raise ValueError(f"{name} has shape {array.shape}")
            self._waiting[name].append(array)
            self._held += array.nbytes + 8
        if self._held >= self._chunk_bytes:
            self._flush()

    def _flush(self) -> None:
        """Write what is waiting as one chunk of the current shard."""
        if not self._held:
            return
        arrays = [_to_arrow(column, self._waiting[name]) for name, column in self.columns.items()]
        chunk = pa.record_batch(arrays, schema=self._schema)
        try:
            if self._open is None:
                self._open = _OpenShard(self.path / f"{len(self._shards):05}.arrow", self._schema)
            size = self._open.write(chunk)
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._waiting = {name: [] for name in self.columns}
        self._held = 0
        if size >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._open is None:
            return
        try:
            self._shards.append(self._open.close())
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._open = None


class _OpenShard:
    """An Arrow file that is being written."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._path, self._rows = path, 0
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, chunk: pa.RecordBatch) -> int:
        """The file's size with this chunk."""
        self._writer.write_batch(chunk)
        self._rows += len(chunk)
        return self._file.tell()

    def abandon(self) -> None:
        with suppress(OSError):
            self._writer.close()
        with suppress(OSError):
            self._file.close()

    def close(self) -> dict[str, Any]:
        """Its line of the index; the file is on the disk then."""
        self._writer.close()
        self._file.close()
        with self._path.open("rb") as written:
            os.fsync(written.fileno())
        size, digest = self._path.stat().st_size, digest_file(self._path)
        return {"file": self._path.name, "rows": self._rows, "bytes": size, "blake2b": digest}


def _plain(columns: Mapping[str, Column]) -> dict[str, Any]:
    return {name: {**asdict(c), "shape": list(c.shape)} for name, c in columns.items()}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text())
        if index["format"] != FORMAT:
            raise ValueError(index["format"])
    except FileNotFoundError:
        raise RecordsDamaged(f"{path}: no {INDEX}; the store is missing or was never finished") from None
    except (ValueError, KeyError, TypeError):
        raise RecordsDamaged(f"{path / INDEX} is damaged") from None
    if index["version"] > VERSION:
        raise UserError(f"{path} was written by a newer Onefold (records version {index['version']}): update this one")
    return index


def _open_shard(file: Path, expected: Mapping[str, Any], verify: bool) -> Iterator[pa.RecordBatch]:
    if not file.is_file():
        raise RecordsDamaged(f"{file} is missing")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise RecordsDamaged(f"{file} has {size:,} bytes instead of {expected['bytes']:,} (truncated?)")
    if verify and digest_file(file) != expected["blake2b"]:
        raise RecordsDamaged(f"{file} is damaged: its checksum differs")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordsDamaged(f"{file} is damaged: {error}") from None


def _to_arrow(column: Column, arrays: Sequence[np.ndarray]) -> pa.Array:
    values = np.concatenate([a.reshape(-1) for a in arrays]) if arrays else np.empty(0, column.numpy)
    if not column.varies:
        flat = pa.array(values)
        return pa.FixedSizeListArray.from_arrays(flat, type=column.arrow()) if column.shape else flat
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    if column.dtype == "text":
        return pa.LargeStringArray.from_buffers(len(arrays), pa.py_buffer(offsets), pa.py_buffer(values))
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=column.arrow())


def _numbers(array: pa.Array, column: Column) -> np.ndarray:
    """The numbers of a column's chunk where they lie, without a copy."""
    flat = array.values if pa.types.is_fixed_size_list(array.type) else array
    return flat.to_numpy(zero_copy_only=True)


def _text_bytes(array: pa.Array) -> np.ndarray:
    data = array.buffers()[2]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def _take(chunks: Sequence[np.ndarray], bounds: np.ndarray, places: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """`chunks`, as if joined, at `places`; chunk i holds the places [bounds[i], bounds[i + 1])."""
    if len(chunks) == 1:
        return chunks[0].take(places, axis=0)
    which = np.searchsorted(bounds, places, side="right") - 1
    found = np.empty((*places.shape, *empty.shape[1:]), empty.dtype)
    for i in np.unique(which):
        mine = which == i
        found[mine] = chunks[i].take(places[mine] - bounds[i], axis=0)
    return found
