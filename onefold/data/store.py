"""A store of pictures on disk: building one from a source, what it holds, whether it is whole, and a look into it.

    out/data.json            what was made of which source: classes, sizes, counts, hash
    out/train, out/held_out  records: image (raw, or encoded with image.size), label (-1: none), name

Building goes through the source twice: headers, labels and hashes first (picture_scan.py); then the pictures, decoded
by several threads and written in order.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder, verify_folder
from onefold.core.progress import Progress, say
from onefold.data.picture_files import BadPicture, Channels, decode, encode, fit, normal, with_channels
from onefold.data.picture_scan import UNLABELLED, Layout, Scan, in_order
from onefold.data.picture_sources import Picture, open_pictures, picture_stamp
from onefold.data.pictures import encoded_record, picture_columns
from onefold.data.records import INDEX, Column, Records, RecordsWriter, find_damage

FACTS = "data.json"
SPLITS = ("train", "held_out")


def build(source: str | Path, out: str | Path, workers: int | None = None, **settings: Any) -> dict[str, Any]:
    """Make a store at `out` of the pictures at `source` (picture_sources.open_pictures); returns its facts.

    settings: fields of `Layout`. Raises UserError, naming the picture, when one is bad, and leaves nothing at `out`
    then.
    """
    layout, target = Layout.from_dict(settings), Path(out)
    if target.exists():
        raise UserError(f"{out} exists already: name another place, or remove it first")
    with atomic_folder(target) as folder:
        facts = fill(folder, source, layout, workers)
        contents = {"stamps": {str(source): picture_stamp(source)}, "facts": facts}
        (folder / FACTS).write_text(json.dumps(contents, indent=1))
    return facts


def fill(folder: Path, source: str | Path, layout: Layout, workers: int | None = None) -> dict[str, Any]:
    """Write the records of both splits below `folder`; returns the facts, which the caller keeps."""
    pictures = open_pictures(source, layout.image, layout.label)
    scan = Scan.of(pictures, layout, workers)
    storage = _Storage.of(scan, layout)
    places = {name: place for place, name in enumerate(scan.classes)}
    columns = picture_columns("image", storage.shape) | {"label": Column("int32"), "name": Column("text")}
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    per_class = {split: np.zeros(len(places), np.int64) for split in SPLITS}
    hashed = blake2b(f"{scan.hash} {storage.shape} {storage.channels} {storage.side}".encode(), digest_size=8)
    good = ((number, picture) for number, picture in enumerate(pictures) if number not in scan.bad)
    with ExitStack() as stack:
        out = {split: stack.enter_context(RecordsWriter(folder / split, columns)) for split in SPLITS}
        bar = stack.enter_context(Progress("storing pictures", scan.count, "pictures"))
        for number, picture, record in in_order(partial(_record, storage=storage), good, workers):
            bar.update()
            if isinstance(record, BadPicture):
                scan.reject(number, record)
                continue
            split = scan.split(number, picture)
            hashed.update(f" {number} {split}".encode())
            label = UNLABELLED if picture.label is None else places[picture.label]
            out[split].add(**record, label=label, name=picture.name)
            counts[split].update(images=1, bytes=memoryview(record["image"]).nbytes)
            if label != UNLABELLED:
                per_class[split][label] += 1
    if not counts["train"]["images"]:
        raise UserError(f"{source}: no picture is left to train on")
    facts = {
        "hash": hashed.hexdigest(),  # of contents, labels, splits and how they are stored: all that a run depends on
        "classes": list(scan.classes),
        "storage": "raw" if storage.shape else "encoded",
        "shape": storage.shape and list(storage.shape),
        "channels": storage.channels,
        "split": "own" if scan.own_split else "chosen",
        "bad": list(scan.bad.values()),
    }
    for split in SPLITS:
        facts[split] = {name: counts[split][name] for name in ("images", "bytes")}
        facts[split]["per_class"] = per_class[split].tolist()
    say(describe(facts))
    return facts


def is_store(path: str | Path) -> bool:
    """Whether `build` made what lies at `path`."""
    folder = Path(os.path.expanduser(path))
    return (folder / FACTS).is_file() and (folder / "train" / INDEX).is_file()


def info(path: str | Path) -> dict[str, Any]:
    """What lies at `path`: the facts of a prepared folder, and rows, pages, bytes and columns of each of its records.

    Reads no rows. Raises UserError when there are no records.
    """
    described = {}
    for name, folder in _stores(Path(path)).items():
        records = Records(folder)
        described[name] = {
            "rows": len(records),
            "pages": len(records.pages) - 1,
            "bytes": sum(f.stat().st_size for f in folder.glob("*.arrow")),
            "columns": {name: _type(column) for name, column in records.columns.items()},
        }
    return {"facts": _facts(Path(path)), "records": described}


def verify(path: str | Path) -> list[str]:
    """What is damaged at `path`, a line each, with the page and its rows; empty when every checksum is right."""
    problems = [line for folder in _stores(Path(path)).values() for line in find_damage(folder)]
    if not problems and (Path(path) / FACTS).is_file():
        problems = verify_folder(Path(path))  # the other files
    return problems


def sample(path: str | Path, out: str | Path, count: int = 16, split: str | None = None, seed: int = 0) -> list[Path]:
    """Write some records for a person to look at: pictures as PNG or as they came, texts as .txt. Returns the files.

    split: which of the records; None: the first. Raises UserError when there is nothing to show.
    """
    stores = _stores(Path(path))
    if split is not None and split not in stores:
        raise UserError(f"{path} has no {split}: there are {', '.join(stores)}")
    records = Records(stores[split or next(iter(stores))])
    shown = [name for name, column in records.columns.items() if column.dtype == "image"]
    if not shown:
        shown = [name for name, column in records.columns.items() if column.dtype == "text" and name != "name"]
    if not shown or not len(records):
        raise UserError(f"{path} holds no pictures and no texts to show")
    classes = (_facts(Path(path)) or {}).get("classes", [])
    rows = np.sort(np.random.default_rng(seed).permutation(len(records))[:count]).tolist()
    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for row in rows:
        label = int(records["label"][row]) if "label" in records.columns else UNLABELLED
        named = f"{row:06}" + (f"-{_plain(classes[label])}" if 0 <= label < len(classes) else "")
        for column in shown:
            for part, content, suffix in _shown(records, column, row):
                file = Path(out) / f"{named}{'' if len(shown) == 1 else '-' + _plain(column)}{part}{suffix}"
                file.write_bytes(content)
                written.append(file)
    return written


def describe(facts: dict[str, Any]) -> str:
    """One line: pictures, classes, how they are stored, what was left out."""
    train, held_out = facts["train"], facts["held_out"]
    classes = f"{len(facts['classes']):,} classes" if facts["classes"] else "no labels"
    size = " × ".join(map(str, facts["shape"])) if facts["shape"] else "of their own sizes"
    left_out = f"; {len(facts['bad']):,} bad ones left out" if facts["bad"] else ""
    return (
        f"pictures: {train['images']:,} to train on, {held_out['images']:,} held out, {classes}; {facts['storage']}, "
        f"{size}, {(train['bytes'] + held_out['bytes']) / 1e6:.1f} MB, hash {facts['hash']}{left_out}"
    )


@dataclass(frozen=True)
class _Storage:
    """shape: of raw pixels, where all pictures have one; None: encoded files. side: what shorter sides come down to."""

    shape: tuple[int, int, int] | None
    channels: Channels
    side: int | None

    @classmethod
    def of(cls, scan: Scan, layout: Layout) -> "_Storage":
        channels = layout.channels or scan.channels()
        size = scan.size(layout.side)
        if size and size[0] * size[1] * channels <= layout.raw_bytes:
            return cls((*size, channels), channels, layout.side)
        return cls(None, channels, layout.side)


def _record(picture: Picture, storage: _Storage) -> dict[str, Any] | BadPicture:
    """What a picture adds to its record; what is wrong with a bad one is returned, so that the others go on."""
    try:
        if storage.shape is None:
            data = picture.data if picture.pixels is None else encode(picture.pixels)
            opacity = storage.channels if storage.channels == 4 else None  # everything else is up to who decodes it
            encoded, found = normal(data or b"", picture.where, opacity, storage.side)
            return encoded_record("image", [encoded], (found.height, found.width, found.channels))
        if picture.pixels is None:
            pixels = decode(picture.data or b"", picture.where, storage.channels, storage.side)
        else:
            pixels = fit(with_channels(picture.pixels, storage.channels), storage.side)
        if pixels.shape != storage.shape:
            raise BadPicture(f"{picture.where} changed while it was read")
        return {"image": pixels}
    except BadPicture as error:
        return error


def _stores(path: Path) -> dict[str, Path]:
    """The records at or directly below a path, by name."""
    if (path / INDEX).is_file():
        return {path.name: path}
    below = {folder.parent.name: folder.parent for folder in sorted(path.glob(f"*/{INDEX}"))}
    if not below:
        raise UserError(f"{path} holds no records: give what `onefold data build` or a run's data folder has")
    return {name: below[name] for name in sorted(below, key=lambda name: (name not in SPLITS, name == SPLITS[1], name))}


def _facts(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / FACTS).read_text())["facts"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / FACTS} is damaged") from None


def _type(column: Column) -> str:
    if column.dtype == "image":
        return "raw pixels " + " × ".join(map(str, column.shape)) if column.shape else "encoded pictures"
    return column.dtype + (" of any length" if column.ragged else f" {list(column.shape)}" if column.shape else "")


def _shown(records: Records, column: str, row: int) -> Iterator[tuple[str, bytes, str]]:
    """(what its name ends with, the content, the suffix) of the files that show a value: each frame of a clip."""
    if records.columns[column].dtype == "text":
        yield "", str(records[column][row]).encode(), ".txt"
        return
    view = records.pictures(column)
    for frame in range(count := view.frames(row)):
        part = f"-{frame:04}" if count > 1 else ""
        if view.shape is None:
            data = bytes(view.encoded(row, frame))
            yield part, data, ".jpg" if data[:2] == b"\xff\xd8" else ".png"
        else:
            pixels = view.gather(np.array([row]))[0]
            yield part, encode(pixels[frame] if len(view.shape) == 4 else pixels), ".png"


def _plain(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)[:60]
