"""Where pictures come from: folders by class, IDX files, tables of files or bytes, saved datasets, handwritten digits.

Everything is read lazily: a source can be gone through again and again, always in the same order, and holds no more
than a few pictures at a time.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np

from onefold.core.errors import UserError
from onefold.data.own_splits import TEST, TRAIN, VALIDATION, OwnSplit, own_splits
from onefold.data.pictures import tables
from onefold.data.pictures.files import MAX_PIXELS, SUFFIXES
from onefold.data.pictures.picture import Picture, PictureSource
from onefold.data.sources import is_dataset, stamp, walk

DIGITS = "digits"  # 1,797 handwritten digits of 8 × 8 pixels that come with this package
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
STRAY = frozenset({"__MACOSX"})  # what archives made on a Mac leave beside the pictures
IDX_IMAGES = re.compile(r"(.*)images([-.])idx[34]-ubyte(\.gz)?")
IDX_BYTES = 8  # the type code of unsigned bytes


def open_pictures(path: str | Path, image: str | None = None, label: str | None = None) -> PictureSource:
    """The pictures at `path`: "digits", a folder, a table (.csv, .tsv, .jsonl, .parquet), IDX images, a saved dataset.

    A folder holds a folder for each class, perhaps below train/ and val/ (or test/); or IDX files, as MNIST has them;
    or Parquet files. image, label: which columns of a table hold the picture (a path relative to the table, or bytes)
    and its label; None: the first with a usual name. Raises UserError when there is nothing to read.
    """
    if path == DIGITS:
        embedded = Path(__file__).parent / DIGITS / "images-idx3-ubyte.gz"
        return PictureSource(DIGITS, lambda: _read_idx(embedded, None), tuple("0123456789"))
    root = Path(path).expanduser()
    own: list[tuple[Path, OwnSplit]]  # files, and where they belong
    if not root.exists():
        raise UserError(f"{path} does not exist: give a folder of pictures, a table of them, or {DIGITS}")
    if is_dataset(root):
        return tables.dataset(root, image, label)
    if root.is_file():
        if root.suffix in TABLES:
            return tables.table([(root, None)], root, image, label)
        if not IDX_IMAGES.fullmatch(root.name):
            raise UserError(f"{path} is no folder, table ({', '.join(TABLES)}) or IDX file of pictures")
        return PictureSource(str(path), lambda: _read_idx(root, None))
    kind = _kind(root)
    if kind == "idx":
        sets = list(_idx_sets(root))
        splits = own_splits([_idx_word(file) for file in sets], root)
        if not splits and len(sets) > 1:
            raise UserError(f"{path} holds several sets ({', '.join(f.name for f in sets)}): name the images of one")
        own = [(file, splits.get(_idx_word(file))) for file in sets if not splits or _idx_word(file) in splits]
        return PictureSource(str(path), lambda: (p for file, split in own for p in _read_idx(file, split)))
    if kind == "parquet":
        parquet = [file for file in walk(root, STRAY) if file.suffix == ".parquet"]
        splits = own_splits({_parquet_word(file) for file in parquet}, root)
        own = [(f, splits.get(_parquet_word(f))) for f in parquet if not splits or _parquet_word(f) in splits]
        return tables.table(own, root, image, label)
    splits = own_splits(_parts(root), root)
    return PictureSource(str(path), lambda: _read_folders(root, splits))


def picture_stamp(path: str | Path) -> str | None:
    """Changes when names, sizes or times of what `open_pictures` reads do; None: nothing is there."""
    return DIGITS if path == DIGITS else stamp(path)


def _kind(root: Path) -> Literal["idx", "parquet", "folders"]:
    """What a folder holds, told by the first file that can tell: there may be millions."""
    for file in walk(root, STRAY):
        if IDX_IMAGES.fullmatch(file.name):
            return "idx"
        if file.suffix == ".parquet":
            return "parquet"
        if file.suffix.lower() in SUFFIXES and file.parent != root:  # a loose picture may illustrate a README
            return "folders"
    return "folders"


def _parts(root: Path) -> list[str]:
    """The folders in `root` that are classes or splits: those with pictures, and splits even if they are empty.

    Raises UserError when some are splits and others are not, which would make classes of the splits.
    """
    words = {*TRAIN, *VALIDATION, *TEST}
    names = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name not in STRAY)
    splits = [name for name in names if name.lower() in words]
    classes = [name for name in names if name not in splits and any(_pictures(root / name))]
    train, held_out = ([name for name in splits if name.lower() in known] for known in (TRAIN, VALIDATION))
    if train and held_out and classes:
        raise UserError(
            f"{root} has pictures in {classes[0]}/ beside {train[0]}/ and {held_out[0]}/: "
            f"move {classes[0]} away, or into one of these"
        )
    return splits + classes


def _pictures(folder: Path) -> Iterator[Path]:
    """Files of pictures at any depth."""
    return (file for file in walk(folder, STRAY) if file.suffix.lower() in SUFFIXES)


def _read_folders(root: Path, splits: dict[str, OwnSplit]) -> Iterator[Picture]:
    """Pictures below a folder for each class; those that lie in none have no label."""
    for name, split in splits.items() if splits else [(".", None)]:
        for file in _pictures(root / name):
            inside = file.relative_to(root / name).parts
            label = inside[0] if len(inside) > 1 else None
            yield Picture(file.relative_to(root).as_posix(), label, content=file, split=split)


def _parquet_word(file: Path) -> str:
    known = (*TRAIN, *VALIDATION, *TEST)
    return file.parent.name if file.parent.name in known else re.split(r"[-_.]", file.name)[0]


def _idx_sets(root: Path) -> Iterator[Path]:
    """IDX files of pictures; of a compressed one and its copy, the copy."""
    for file in walk(root, STRAY):
        if IDX_IMAGES.fullmatch(file.name) and not (file.suffix == ".gz" and file.with_suffix("").exists()):
            yield file


def _idx_word(file: Path) -> str:
    """What the name of a set ends with: "train" in "emnist-letters-train-images-idx3-ubyte.gz"."""
    prefix = cast("re.Match[str]", IDX_IMAGES.fullmatch(file.name))[1]
    return ["", *re.findall("[a-z0-9]+", prefix)][-1]


def _read_idx(file: Path, split: OwnSplit) -> Iterator[Picture]:
    """Pictures [N, H, W] or [N, H, W, C], with the labels [N] of the file beside them.

    Format: Y. LeCun's description beside MNIST: two zeros, a type, the number of dimensions, their sizes, the values.
    """
    labels = file.with_name(re.sub(r"images([-.])idx[34]", r"labels\1idx1", file.name))
    if not labels.is_file():
        other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(labels.name + ".gz")
        if not other.is_file():
            raise UserError(f"{file} has no labels beside it: {labels.name} is missing")
        labels = other
    with _open_idx(file) as pictures, _open_idx(labels) as numbers:
        count, *size = _idx_sizes(pictures, file, (3, 4))
        [labelled] = _idx_sizes(numbers, labels, (1,))
        if count != labelled:
            raise UserError(f"{file} has {count:,} pictures, but {labels.name} {labelled:,} labels")
        shape = (*size, 1) if len(size) == 2 else tuple(size)
        if not 0 < prod(shape) <= MAX_PIXELS * 4 or shape[-1] not in (1, 3, 4):
            raise UserError(f"{file} is damaged: it says that its pictures are {' × '.join(map(str, shape))}")
        for i in range(count):
            pixels = np.frombuffer(_idx_bytes(pictures, prod(shape), file), np.uint8).reshape(shape)
            label = _idx_bytes(numbers, 1, labels)[0]
            yield Picture(f"{file.name}:{i}", str(label), pixels, split=split)


def _open_idx(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _idx_sizes(opened: IO[bytes], file: Path, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    zeros, kind, count = np.frombuffer(_idx_bytes(opened, 4, file), np.dtype([("z", ">u2"), ("k", "u1"), ("n", "u1")]))[
        0
    ]
    if zeros or kind != IDX_BYTES or count not in dimensions:
        raise UserError(f"{file} is no IDX file of bytes with {' or '.join(map(str, dimensions))} dimensions")
    return tuple(np.frombuffer(_idx_bytes(opened, 4 * int(count), file), ">u4").tolist())


def _idx_bytes(opened: IO[bytes], count: int, file: Path) -> bytes:
    try:
        data = opened.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if len(data) < count:
        raise UserError(f"{file} is truncated")
    return data
