"""Records: the one store of samples. Columns in memory-mapped Arrow files, in shards with checksums, appendable.

A folder holds `records.json` (columns, shards, checksums) and shards `00000.arrow`, … in the Arrow IPC file format,
which any Arrow reader opens. The index is replaced last and at once, so a crash while appending loses nothing.

A shard consists of pages (Arrow's record batches). Each has a checksum of its own, so that `find_damage` can say which
rows are lost; reading does not compute them, since that takes longer than copying the rows out.
"""

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from onefold.core.errors import UserError
from onefold.core.files import atomic_write, disk_error
from onefold.data.columns import Column, Ragged, Strided
from onefold.data.picture_columns import Pictures

INDEX = "records.json"
FORMAT, VERSION = "onefold.records", 2  # 2 came with picture columns; without them a store is still written as 1
CHUNK_BYTES = 32 << 20  # of a page: what a writer holds in memory at most, beyond one record
SHARD_BYTES = 1 << 30


class RecordsDamaged(UserError):
    """A file of the store is missing, truncated or changed; the message names it."""


class Records:
    """A store opened for reading: `len(records)`, `records["tokens"]` is a `Strided` or `Ragged` view."""

    def __init__(self, path: str | Path, verify: bool = False, rows: int | None = None):
        """Opening reads the index and compares the sizes of files; a shard is mapped when a row of it is asked for.

        `verify` compares all checksums first (seconds for each gigabyte). rows: how many there were before something
        was appended; the later ones are left out. Raises RecordsDamaged naming the file (with `verify`, and the page),
        UserError for a newer format; reading a row may raise RecordsDamaged, too.
        """
        self.path = Path(path)
        index = _read_index(self.path)
        self.columns = _columns(index)
        if verify and (damage := find_damage(self.path)):
            raise RecordsDamaged(damage[0])
        listed = index["shards"]
        if rows is not None:  # what is appended begins with a new shard
            ends = [0, *accumulate(shard["rows"] for shard in listed)]
            if rows not in ends:
                raise RecordsDamaged(f"{self.path}: no shard ends after {rows:,} rows")
            listed = listed[: ends.index(rows)]
        shards = [_Shard(self.path / shard["file"], shard, self.columns) for shard in listed]
        # The first row of each page, and the end: Int[P + 1].
        self.pages = np.cumsum([0, *(rows for shard in shards for rows in shard.rows)])
        places = [(shard, page) for shard in shards for page in range(len(shard.rows))]

        def page(number: int) -> pa.RecordBatch:
            shard, place = places[number]
            return shard.page(place)

        self._views: dict[str, Ragged | Strided] = {
            name: (Ragged if column.varies else Strided)(column, self.pages, lambda i, name=name: page(i).column(name))
            for name, column in self.columns.items()
        }

    def __len__(self) -> int:
        return int(self.pages[-1])

    def __getitem__(self, name: str) -> Ragged | Strided:
        return self._views[name]

    def pictures(self, name: str = "image") -> Pictures:
        if name not in self.columns or self.columns[name].dtype != "image":
            raise TypeError(f"{name} is no column of pictures")
        return Pictures(name, self._views)

    def ragged(self, name: str) -> Ragged:
        view = self._views[name]
        if not isinstance(view, Ragged):
            raise TypeError(f"{name} has a fixed stride")
        return view

    def strided(self, name: str) -> Strided:
        view = self._views[name]
        if not isinstance(view, Strided):
            raise TypeError(f"{name} is ragged")
        return view


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
        self._old: list[Path] = []  # shards of a store that this one takes the place of
        if not append:
            with suppress(RecordsDamaged):
                self._old = [self.path / Path(shard["file"]).name for shard in _read_index(self.path)["shards"]]
        elif (self.path / INDEX).is_file():
            index = _read_index(self.path)
            if index["columns"] != _plain(self.columns):
                raise UserError(f"{self.path} holds other columns: {', '.join(index['columns'])}; nothing was appended")
            self._shards = index["shards"]
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in self.columns}
        self._held = 0
        self._open: _OpenShard | None = None
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._flush()
            self._close_shard()
            version = VERSION if any(c.dtype == "image" for c in self.columns.values()) else 1
            index = {"format": FORMAT, "version": version, "columns": _plain(self.columns), "shards": self._shards}
            atomic_write(self.path / INDEX, json.dumps(index, indent=1))
            for path in self._old:
                path.unlink(missing_ok=True)
        else:
            if self._open is not None:
                self._open.abandon()
            for path in self._written:  # which no index names
                path.unlink(missing_ok=True)

    def add(self, **record: Any) -> None:
        """One record: a value for every column."""
        if record.keys() != self.columns.keys():
            raise ValueError(f"a record needs {', '.join(self.columns)}; got {', '.join(record)}")
        for name, column in self.columns.items():
            array = column.record(name, record[name])
            self._waiting[name].append(array)
            self._held += array.nbytes + 8
        if self._held >= self._chunk_bytes:
            self._flush()

    def _flush(self) -> None:
        """Write what is waiting as one page of the current shard."""
        if not self._held:
            return
        arrays = [column.join(self._waiting[name]) for name, column in self.columns.items()]
        page = pa.record_batch(arrays, schema=self._schema)
        try:
            if self._open is None:
                self._open = _OpenShard(self._free_name(), self._schema)
                self._written.append(self._open.path)
            size = self._open.write(page)
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._waiting = {name: [] for name in self.columns}
        self._held = 0
        if size >= self._shard_bytes:
            self._close_shard()

    def _free_name(self) -> Path:
        """Of no file that is there or listed: in an append it may be another store's, too."""
        listed, number = {shard["file"] for shard in self._shards}, len(self._shards)
        while (name := f"{number:05}.arrow") in listed or os.path.lexists(self.path / name):
            number += 1
        return self.path / name

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
        self.path, self._pages = path, []
        path.open("xb").close()
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, page: pa.RecordBatch) -> int:
        """The file's size with this page."""
        self._writer.write_batch(page)
        self._pages.append([len(page), self._file.tell()])
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
        with self.path.open("rb") as written:
            os.fsync(written.fileno())
        digest, sums = _checksums(self.path, [end for _, end in self._pages])
        return {
            "file": self.path.name,
            "rows": sum(rows for rows, _ in self._pages),
            "bytes": self.path.stat().st_size,
            "blake2b": digest,
            "pages": [[rows, end, sum] for (rows, end), sum in zip(self._pages, sums)],  # rows, where it ends, CRC-32
        }


def find_damage(path: str | Path) -> list[str]:
    """What is wrong with the files of a store, one line each; empty when every checksum is right.

    Raises RecordsDamaged when its index cannot be read.
    """
    problems, first = [], 0
    for shard in _read_index(Path(path))["shards"]:
        problems += _damage(Path(path) / shard["file"], shard, first)
        first += shard["rows"]
    return problems


def _damage(file: Path, expected: Mapping[str, Any], first: int) -> list[str]:
    """The same for one shard, whose first row is number `first` of the store."""
    try:
        _check_size(file, expected)
    except RecordsDamaged as error:
        return [str(error)]
    pages = expected.get("pages", [])  # stores of older versions have none
    digest, sums = _checksums(file, [end for _, end, _ in pages])
    if digest == expected["blake2b"]:
        return []
    problems = []
    for number, ((rows, _, wanted), found) in enumerate(zip(pages, sums)):
        if found != wanted:
            where = f"page {number} (rows {first:,} to {first + rows - 1:,})"
            problems.append(f"{file} is damaged: the checksum of {where} differs")
        first += rows
    return problems or [f"{file} is damaged: its checksum differs, outside of the pages' data"]


def _checksums(file: Path, ends: Sequence[int]) -> tuple[str, list[int]]:
    """(BLAKE2b-256 of the whole file in hex, CRC-32 of what lies up to each of the ends), reading it once."""
    digest, sums = hashlib.blake2b(digest_size=32), []
    with file.open("rb") as opened:
        for end in [*ends, None]:
            crc, left = 0, (1 << 62) if end is None else end - opened.tell()
            while left and (data := opened.read(min(left, 1 << 20))):
                digest.update(data)
                crc, left = zlib.crc32(data, crc), left - len(data)
            sums.append(crc)
    return digest.hexdigest(), sums[:-1]


def _plain(columns: Mapping[str, Column]) -> dict[str, Any]:
    return {name: {**asdict(c), "shape": list(c.shape)} for name, c in columns.items()}


def _columns(index: Mapping[str, Any]) -> dict[str, Column]:
    return {name: Column(**{**c, "shape": tuple(c["shape"])}) for name, c in index["columns"].items()}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text())
        if index["format"] != FORMAT:
            raise ValueError(index["format"])
        newer = index["version"] > VERSION
        if not newer:
            for column in _columns(index).values():
                column.arrow()
            for shard in index["shards"]:
                _ = shard["file"], shard["bytes"], shard["rows"], sum(rows for rows, _, _ in shard.get("pages", []))
    except FileNotFoundError:
        raise RecordsDamaged(f"{path}: no {INDEX}; the store is missing or was never finished") from None
    except (ValueError, KeyError, TypeError, pa.ArrowNotImplementedError):
        raise RecordsDamaged(f"{path / INDEX} is damaged") from None
    if newer:
        raise UserError(f"{path} was written by a newer Onefold (records version {index['version']}): update this one")
    return index


def _check_size(file: Path, expected: Mapping[str, Any]) -> int:
    """When the file was written, in nanoseconds. Raises RecordsDamaged when it has another size, or is not there."""
    if not file.is_file():
        raise RecordsDamaged(f"{file} is missing")
    status = file.stat()
    if status.st_size != expected["bytes"]:
        raise RecordsDamaged(f"{file} has {status.st_size:,} bytes instead of {expected['bytes']:,} (truncated?)")
    return status.st_mtime_ns


class _Shard:
    """A file of the store, mapped when a page of it is asked for. `rows`: of each of its pages."""

    def __init__(self, file: Path, expected: Mapping[str, Any], columns: Mapping[str, Column]):
        self._written = _check_size(file, expected)
        self._file, self._expected, self._columns, self._lock = file, expected, columns, threading.Lock()
        self._reader: pa.RecordBatchFileReader | None = None
        if "pages" in expected:
            self.rows = [rows for rows, _, _ in expected["pages"]]
        else:  # stores of older versions do not say
            reader = self._open()
            self.rows = [len(self._batch(reader, i)) for i in range(reader.num_record_batches)]
        if sum(self.rows) != expected["rows"]:
            raise self._not_as_said()

    def page(self, number: int) -> pa.RecordBatch:
        with self._lock:  # a reader is for one thread at a time
            self._reader = self._reader or self._open()
            found = self._batch(self._reader, number)
        if len(found) != self.rows[number]:
            raise self._not_as_said()
        return found

    def _batch(self, reader: pa.RecordBatchFileReader, number: int) -> pa.RecordBatch:
        try:
            return reader.get_batch(number)
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: it has fewer
            raise RecordsDamaged(f"{self._file} is damaged: {error}") from None

    def _open(self) -> pa.RecordBatchFileReader:
        if _check_size(self._file, self._expected) != self._written:
            raise RecordsDamaged(f"{self._file} was written anew since the store was opened: open it again")
        import torch  # not before a row is read: it takes a second where nothing else needs it

        try:  # keeps no descriptor, as those of Python and Arrow do: there may be more shards than files to be open
            mapped = torch.from_file(str(self._file), shared=False, size=self._expected["bytes"], dtype=torch.uint8)
        except RuntimeError as error:
            raise UserError(f"{self._file} cannot be read: {str(error).splitlines()[0]}") from None
        try:
            reader = pa.ipc.open_file(pa.py_buffer(memoryview(mapped.numpy()).toreadonly()))
        except (pa.ArrowException, OSError) as error:
            raise RecordsDamaged(f"{self._file} is damaged: {error}") from None
        types = [column.arrow() for column in self._columns.values()]
        if reader.schema.names != list(self._columns) or reader.schema.types != types:
            raise self._not_as_said()
        return reader

    def _not_as_said(self) -> RecordsDamaged:
        return RecordsDamaged(f"{self._file} is damaged: it does not hold what {INDEX} says")
