"""Tables of pictures: CSV, JSON lines, Parquet and datasets that `datasets` saved, a row for each picture.

A row names a file, relative to the table, or holds its bytes, plainly or as the Hugging Face hub has them:
{"bytes": …, "path": …}.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.data.own_splits import OwnSplit, own_splits
from onefold.data.pictures.picture import Picture, PictureSource
from onefold.data.sources import dataset_files
from onefold.data.tables import (
    LABELS,
    Pick,
    Row,
    arrow_schema,
    class_names,
    label_name,
    needed_column,
    parquet_schema,
    read_arrow,
    read_table,
    usual_column,
)

IMAGES = ("image", "img", "picture", "file_name", "filename", "file", "path")


def table(
    files: Sequence[tuple[Path, OwnSplit]], path: Path, image: str | None = None, label: str | None = None
) -> PictureSource:
    """Tables of one kind with the split that each belongs to. Errors name the file, and where it can be, the row."""
    first = files[0][0]
    classes = class_names(parquet_schema(first), label) if first.suffix == ".parquet" else None
    pick = partial(_columns, image=image, label=label)
    return PictureSource(str(path), lambda: _read(files, read_table, path, pick, classes), classes)


def dataset(root: Path, image: str | None = None, label: str | None = None) -> PictureSource:
    """A dataset that `datasets` saved, with its splits if it has some."""
    parts = dataset_files(root)
    splits = own_splits(parts, root)
    files: list[tuple[Path, OwnSplit]]
    files = [(file, splits.get(name)) for name, own in parts.items() if not splits or name in splits for file in own]
    if not files:
        raise UserError(f"{root} is an empty dataset")
    classes = class_names(arrow_schema(files[0][0]), label)
    pick = partial(_columns, image=image, label=label)
    return PictureSource(str(root), lambda: _read(files, read_arrow, root, pick, classes), classes)


def _read(
    files: Sequence[tuple[Path, OwnSplit]],
    reader: Callable[[Path, Pick], Iterator[Row]],
    path: Path,
    pick: Pick,
    classes: Sequence[str] | None,
) -> Iterator[Picture]:
    for file, split in files:
        within = file.name if file == path else file.relative_to(path).as_posix()
        for number, (picture, value) in reader(file, pick):
            name, content = _content(picture, file, f"{within}:{number}")
            yield Picture(name, label_name(value, classes, f"{file}:{number}"), content=content, split=split)


def _content(value: Any, file: Path, place: str) -> tuple[str, bytes | Path]:
    """(the picture's name, its bytes or file)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return place, value
    if isinstance(value, str) and value:
        return value, file.parent / value
    return place, b""  # an empty file, which is told as any bad picture is


def _columns(known: Sequence[str], where: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The names of both columns. A label that nobody asked for may be missing."""
    label = usual_column(known, where, label, LABELS)
    return needed_column(known, where, image, IMAGES, "say which column holds the picture with image=NAME"), label
