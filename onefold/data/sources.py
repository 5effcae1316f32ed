"""Where text comes from: folders, text files, JSONL, Parquet, FASTA, Hugging Face datasets on disk, Python's own files.

Everything is read lazily: no more than one document (of a Parquet file, one batch of rows) is in memory at a time.
"""

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, cast

from onefold.core.errors import UserError
from onefold.core.json_lines import valid_text
from onefold.core.progress import say
from onefold.data.proteins import fasta

STDLIB = "stdlib"
TESTS = {"test", "tests", "idle_test"}
NOT_LIBRARY = {"site-packages", "dist-packages"}
PART_BYTES = 32 << 20  # a longer text file counts as several documents, cut at ends of lines
LINES = (".jsonl", ".ndjson")
BROKEN_SHARE = 0.1  # of characters that are no UTF-8, above which a file is not text


@dataclass(frozen=True)
class Document:
    """A text and where it came from: a path relative to the source, with `:line` or `:row` inside a file of many."""

    name: str
    text: str


@dataclass
class Skipped:
    """What a reader left out or mended, in files or records."""

    binary: int = 0
    empty: int = 0
    unreadable: int = 0
    without_text: int = 0
    broken_utf8: int = 0

    def __str__(self) -> str:
        """One line; empty when there is nothing to tell."""
        left_out = {f.name: n for f in fields(self) if f.name != "broken_utf8" and (n := getattr(self, f.name))}
        told = []
        if left_out:
            told.append(", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in left_out.items()) + " left out")
        if self.broken_utf8:
            told.append(f"broken UTF-8 replaced by \ufffd in {self.broken_utf8:,}")
        return "; ".join(told)


def read(path: str | Path, field: str = "text", skipped: Skipped | None = None) -> Iterator[Document]:
    """All documents at `path` in a fixed order: "stdlib", a folder, a file (text, .jsonl, .fasta, .parquet, also .gz).

    field: what holds the text in JSONL, Parquet and datasets. What is left out is counted in `skipped`; without one,
    it is told in a line at the end. Raises UserError when there is nothing to read, or a record is damaged.
    """
    counts = Skipped() if skipped is None else skipped
    found = False
    for document in _documents(path, field, counts):
        found = True
        yield document
    if not found:
        told = str(counts)
        raise UserError(f"{path} holds no text" + (f" ({told})" if told else "") + ": give a folder or file with text")
    if skipped is None and (told := str(counts)):
        say(f"{path}: {told}")


def stamp(path: str | Path) -> str | None:
    """A hash of names, sizes and times of what `read` would open, to notice changes cheaply. None: nothing is there."""
    if path != STDLIB and not Path(path).expanduser().exists():
        return None
    root, files = _files(path)
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        digest.update(f"{file.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def open_text(file: Path) -> IO[str]:
    """A text file, compressed or not, with broken UTF-8 replaced."""
    if file.suffix == ".gz":
        return cast("IO[str]", gzip.open(file, "rt", encoding="utf-8", errors="replace"))
    return file.open(encoding="utf-8", errors="replace")


def _documents(path: str | Path, field: str, counts: Skipped) -> Iterator[Document]:
    root, files = _files(path)
    if is_dataset(root):
        for file in files:
            yield from _read_arrow(file, file.relative_to(root).as_posix(), field)
        return
    alone = root.is_file()
    for file in files:
        name = file.name if alone else file.relative_to(root).as_posix()
        try:
            yield from _read_file(file, name, field, counts)
        except _NoText as error:
            if alone:
                raise UserError(str(error)) from None
            counts.without_text += 1
        except (OSError, EOFError, zlib.error) as error:
            if alone:
                raise UserError(f"{file} could not be read: {error}") from None
            counts.unreadable += 1


def _files(path: str | Path) -> tuple[Path, list[Path]]:
    """(what names are relative to, the files to read in order)."""
    if path == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [f for f in walk(root, TESTS | NOT_LIBRARY) if f.suffix == ".py"]
        if not files:
            raise UserError(f"this Python has no standard library sources in {root}: give data=FOLDER")
        return root, files
    root = Path(path).expanduser()
    if is_dataset(root):
        return root, _dataset_files(root)
    if root.is_dir():
        files = list(walk(root))
        if not files:
            raise UserError(f"{root} is an empty folder: give a folder or file with text")
        return root, files
    if not root.is_file():
        raise UserError(f"{path} does not exist: give a folder or file with text")
    return root, [root]


def walk(root: Path, without: Set[str] = frozenset()) -> Iterator[Path]:
    """Regular files below `root`, sorted; hidden ones and caches left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in without and f != "__pycache__" and not f.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                yield file


class _NoText(Exception):
    """A file of records that have no text under the wanted name."""


def _read_file(file: Path, name: str, field: str, counts: Skipped) -> Iterator[Document]:
    inner = Path(file.stem) if file.suffix == ".gz" else file
    if inner.suffix in LINES:
        yield from _read_lines(file, name, field, counts)
    elif file.suffix == ".parquet":
        yield from _read_parquet(file, name, field)
    elif inner.suffix in fasta.SUFFIXES:
        yield from _read_chains(file, name, counts)
    else:
        yield from _read_text(file, name, counts)


def _read_text(file: Path, name: str, counts: Skipped) -> Iterator[Document]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        for number, data in enumerate(_parts(cast("IO[bytes]", opened)), 1):
            text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", errors="replace")
            broken = text.count("\ufffd") - data.count("\ufffd".encode())
            if "\0" in text or broken > BROKEN_SHARE * len(text):
                counts.binary += 1
                return
            if broken and number == 1:
                counts.broken_utf8 += 1
            if text:
                yield Document(name if number == 1 else f"{name}#{number}", text)
            elif number == 1:
                counts.empty += 1


def _parts(opened: IO[bytes]) -> Iterator[bytes]:
    """The file's bytes, in parts that end with a line when it is long."""
    rest = b""
    while True:
        data = rest + opened.read(PART_BYTES)
        if len(data) < PART_BYTES:
            yield data
            return
        end = data.rfind(b"\n") + 1 or len(data)
        rest = data[end:]
        yield data[:end]


def _read_lines(file: Path, name: str, field: str, counts: Skipped) -> Iterator[Document]:
    with open_text(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number}: not valid JSON ({error})") from None
            text = value.get(field) if isinstance(value, dict) else value
            if not isinstance(text, str):
                known = f"it has {', '.join(value)}" if isinstance(value, dict) else "it is no object"
                message = f"{file}:{number}: no text in {field!r} ({known}); name the right field of the source"
                raise _NoText(message) if number == 1 else UserError(message)
            if not text:
                counts.empty += 1
                continue
            counts.broken_utf8 += "\ufffd" in line
            yield Document(f"{name}:{number}", valid_text(text))


def _read_chains(file: Path, name: str, counts: Skipped) -> Iterator[Document]:
    with open_text(file) as opened:
        for chain in fasta.read_fasta(opened, file):
            counts.empty += not chain.sequence
            if chain.sequence:
                yield Document(f"{name}:{chain.line}", chain.sequence)


def _read_parquet(file: Path, name: str, field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}") from None
    with opened:
        if field not in opened.schema_arrow.names:
            raise _NoText(f"{file} has no column {field!r} (it has {', '.join(opened.schema_arrow.names)})")
        try:
            yield from _rows((b.column(0) for b in opened.iter_batches(256, columns=[field])), name)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file} is damaged: {error}") from None


def _read_arrow(file: Path, name: str, field: str) -> Iterator[Document]:
    """One file of a dataset that `datasets` saved: an Arrow stream."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            if field not in stream.schema.names:
                raise UserError(f"{file} has no column {field!r} (it has {', '.join(stream.schema.names)})")
            yield from _rows((batch.column(field) for batch in stream), name)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _rows(columns: Iterator[Any], name: str) -> Iterator[Document]:
    number = 0
    for column in columns:
        for value in column:
            number += 1
            if text := value.as_py():
                yield Document(f"{name}:{number}", str(text))


def is_dataset(root: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return (root / "dataset_dict.json").is_file() or (
        (root / "state.json").is_file() and (root / "dataset_info.json").is_file()
    )


def dataset_files(root: Path) -> dict[str, list[Path]]:
    """The Arrow files of each split of a saved dataset; of a single one, under the name ""."""
    try:
        splits = [""]
        if (root / "dataset_dict.json").is_file():
            splits = json.loads((root / "dataset_dict.json").read_text())["splits"]
        listed = {split: json.loads((root / split / "state.json").read_text())["_data_files"] for split in splits}
        return {split: [root / split / file["filename"] for file in files] for split, files in listed.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root} is not a whole dataset as `datasets` saves it: {error!r}") from None


def _dataset_files(root: Path) -> list[Path]:
    """Those of the split "train" (else of the first one)."""
    files = dataset_files(root)
    return files["train"] if "train" in files else next(iter(files.values()), [])
