"""Tables of pictures: CSV, JSON lines, Parquet and datasets that `datasets` saved, a row for each picture.

A row names a file, relative to the table, or holds its bytes, plainly or as the Hugging Face hub has them:
{"bytes": …, "path": …}. Whole numbers are labels as they are, or places in the names that the table's schema gives.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onefold.core.errors import UserError
from onefold.data.picture_sources import OwnSplit, Picture, PictureSource, own_splits
from onefold.data.sources import dataset_files, open_text

IMAGES = ("image", "img", "picture", "file_name", "filename", "file", "path")
LABELS = ("label", "labels", "class", "category", "target")
ROWS = 64  # of Parquet, read at a time

Row = tuple[int, Any, Any]  # its number, picture and label


def table(
    files: Sequence[tuple[Path, OwnSplit]], path: Path, image: str | None = None, label: str | None = None
) -> PictureSource:
    """Tables of one kind with the split that each belongs to. Errors name the file, and where it can be, the row."""
    first = files[0][0]
    parquet = first.suffix == ".parquet"
    reader = _parquet if parquet else _csv if first.suffix in (".csv", ".tsv") else _json_lines
    classes = _class_names(_parquet_schema(first), label) if parquet else None
    return PictureSource(str(path), lambda: _read(files, reader, path, image, label, classes), classes)


def dataset(root: Path, image: str | None = None, label: str | None = None) -> PictureSource:
    """A dataset that `datasets` saved, with its splits if it has some."""
    parts = dataset_files(root)
    splits = own_splits(parts, root)
    files: list[tuple[Path, OwnSplit]]
    files = [(file, splits.get(name)) for name, own in parts.items() if not splits or name in splits for file in own]
    if not files:
        raise UserError(f"{root} is an empty dataset")
    try:
        with pa.memory_map(str(files[0][0])) as mapped, pa.ipc.open_stream(mapped) as stream:
            classes = _class_names(stream.schema, label)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{files[0][0]} is damaged: {error}") from None
    return PictureSource(str(root), lambda: _read(files, _arrow, root, image, label, classes), classes)


def _read(
    files: Sequence[tuple[Path, OwnSplit]],
    reader: Callable[[Path, str | None, str | None], Iterator[Row]],
    path: Path,
    image: str | None,
    label: str | None,
    classes: Sequence[str] | None,
) -> Iterator[Picture]:
    for file, split in files:
        within = file.name if file == path else file.relative_to(path).as_posix()
        for number, picture, value in reader(file, image, label):
            name, content = _content(picture, file, f"{within}:{number}")
            yield Picture(name, _label(value, classes, f"{file}:{number}"), content=content, split=split)


def _content(value: Any, file: Path, place: str) -> tuple[str, bytes | Path]:
    """(the picture's name, its bytes or file)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return place, value
    if isinstance(value, str) and value:
        return value, file.parent / value
    return place, b""  # an empty file, which is told as any bad picture is


def _label(value: Any, classes: Sequence[str] | None, place: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # what a column of whole numbers with gaps becomes
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
        if not 0 <= value < len(classes):
            raise UserError(f"{place}: label {value} is out of range: there are {len(classes)} classes, from 0")
        return classes[value]
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{place}: a label must be a name or a number, not {type(value).__name__}")


def _columns(known: Sequence[str], image: str | None, label: str | None, file: Path | str) -> tuple[str, str | None]:
    """The names of both columns. A label that nobody asked for may be missing."""
    has = f"{file} has {', '.join(known) if known else 'no columns'}"
    for wanted in (image, label):
        if wanted is not None and wanted not in known:
            raise UserError(f"{has}, and no {wanted!r}")
    image = image or next((name for name in IMAGES if name in known), None)
    if image is None:
        raise UserError(f"{has}: say which column holds the picture with image=NAME")
    return image, label or next((name for name in LABELS if name in known), None)


def _csv(file: Path, image: str | None, label: str | None) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        rows = csv.DictReader(opened, delimiter="\t" if file.suffix == ".tsv" else ",")
        try:
            first, second = _columns(rows.fieldnames or [], image, label, file)
            for row in rows:
                yield rows.line_num, row[first], row[second] if second else None
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: not valid CSV ({error})") from None


def _json_lines(file: Path, image: str | None, label: str | None) -> Iterator[Row]:
    with open_text(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: no object with a picture and a label")
            first, second = _columns(list(row), image, label, f"{file}:{number}")
            yield number, row[first], row[second] if second else None


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}") from None


def _parquet(file: Path, image: str | None, label: str | None) -> Iterator[Row]:
    first, second = _columns(_parquet_schema(file).names, image, label, file)
    try:
        with pq.ParquetFile(file) as opened:
            wanted = [first, second] if second else [first]
            yield from _rows(opened.iter_batches(ROWS, columns=wanted), first, second)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _arrow(file: Path, image: str | None, label: str | None) -> Iterator[Row]:
    """One file of a saved dataset: an Arrow stream."""
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            first, second = _columns(stream.schema.names, image, label, file)
            yield from _rows(iter(stream), first, second)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _rows(batches: Iterator[pa.RecordBatch], image: str, label: str | None) -> Iterator[Row]:
    number = 0
    for batch in batches:
        labels = batch.column(label) if label else None
        for i, picture in enumerate(batch.column(image)):
            number += 1
            yield number, picture.as_py(), None if labels is None else labels[i].as_py()


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """The names that a Hugging Face schema gives to the numbers of the label column."""
    label = label or next((name for name in LABELS if name in schema.names), None)
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
