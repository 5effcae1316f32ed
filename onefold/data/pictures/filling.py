"""Writing pictures into the records of a store: the second reading, decoded by several threads and written in order."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.pictures.files import BadPicture, Channels, clip, decode, encode, fit, normal, with_channels
from onefold.data.pictures.picture import Picture, PictureSource
from onefold.data.pictures.scan import UNLABELLED, Layout, Scan, content_key, in_order
from onefold.data.records import Column, Records, RecordsWriter

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Storage:
    """shape: of raw pixels, where all pictures have one; None: encoded files. side: what shorter sides come down to.

    frames: at most, of clips, which are always encoded; None: stills.
    """

    shape: tuple[int, int, int] | None
    channels: Channels
    side: int | None
    frames: int | None = None

    @classmethod
    def of(cls, scan: Scan, layout: Layout) -> "Storage":
        channels = layout.channels or scan.channels()
        size = scan.size(layout.side)
        if layout.frames:
            return cls(None, channels, layout.side, layout.frames)
        if size and size[0] * size[1] * channels <= layout.raw_bytes:
            return cls((*size, channels), channels, layout.side)
        return cls(None, channels, layout.side)

    def __str__(self) -> str:
        return f"{self.shape} {self.channels} {self.side}" + (f" {self.frames}" if self.frames else "")

    def columns(self) -> dict[str, Column]:
        """Of the records: picture, label (UNLABELLED: none), name, and the key of the content (UInt64)."""
        rest = {"label": Column("int32"), "name": Column("text"), "key": Column("uint64")}
        return picture_columns("image", self.shape, clip=self.frames is not None) | rest

    def record(self, picture: Picture) -> tuple[int | None, dict[str, Any] | BadPicture]:
        """(the key of what was read, what the picture adds to its record).

        What is wrong with a bad one is returned, so that the others go on; without a key where nothing could be read.
        """
        key = None
        try:
            content = (picture.data or b"") if picture.pixels is None else picture.pixels.tobytes()
            key = content_key(content)
            return key, self._image(picture, content)
        except BadPicture as error:
            return key, error

    def _image(self, picture: Picture, content: bytes) -> dict[str, Any]:
        """Its columns of the record. Raises BadPicture."""
        if self.shape is None:
            data = content if picture.pixels is None else encode(picture.pixels)
            if self.frames:
                frames, found = clip(data, picture.where, self.channels, self.side, self.frames)
                return encoded_record("image", frames, (found.height, found.width, found.channels), clip=True)
            opacity = self.channels if self.channels == 4 else None  # everything else is up to who decodes it
            encoded, found = normal(data, picture.where, opacity, self.side)
            return encoded_record("image", [encoded], (found.height, found.width, found.channels))
        if picture.pixels is None:
            pixels = decode(content, picture.where, self.channels, self.side)
        else:
            pixels = fit(with_channels(picture.pixels, self.channels), self.side)
        if pixels.shape != self.shape:
            (height, width), (tall, wide) = pixels.shape[:2], self.shape[:2]
            raise BadPicture(f"{picture.where} comes to {width} × {height} pixels, and the others to {wide} × {tall}")
        return {"image": pixels}


@dataclass
class Present:
    """The pictures that a store has already: their keys (UInt64[N], sorted) and labels (Int32[N])."""

    keys: np.ndarray
    labels: np.ndarray
    again: int = 0  # of those that came, how many are there already
    moved: int = 0  # … and have another label now

    @classmethod
    def of(cls, folder: Path) -> "Present":
        """Those of both splits below a folder."""
        found = [Records(folder / split) for split in SPLITS]
        keys, labels = (
            np.concatenate([records.strided(name).gather(np.arange(len(records))) for records in found])
            for name in ("key", "label")
        )
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], labels[order])

    @classmethod
    def nothing(cls) -> "Present":
        return cls(np.empty(0, np.uint64), np.empty(0, np.int32))

    def has(self, key: np.uint64, label: int) -> bool:
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return False
        self.again += 1
        self.moved += self.labels[place] != label
        return True


def write(
    folder: Path,
    pictures: PictureSource,
    scan: Scan,
    storage: Storage,
    facts: dict[str, Any],
    present: Present,
    workers: int | None = None,
) -> dict[str, Any]:
    """Append the pictures to the records of both splits below `folder`; returns the new facts.

    facts, present: of what is there; `empty_facts` and `Present.nothing` where nothing is. A picture that is there
    already is left out; where none remains, the same facts come back. Raises UserError, naming the picture, when one is
    bad (without skip_bad), and when the source has changed since the scan.
    """
    classes = facts["classes"]
    places = {name: place for place, name in enumerate(classes)}
    per_class = {s: np.resize([*facts[s]["per_class"], *[0] * len(classes)], len(classes)) for s in SPLITS}
    sums = {split: {name: facts[split][name] for name in ("images", "bytes")} for split in SPLITS}
    before = {split: sums[split]["images"] for split in SPLITS}
    hashed = blake2b(f"{facts['hash']}{scan.hash} {storage}".encode(), digest_size=8)
    with ExitStack() as stack:
        out = {s: stack.enter_context(RecordsWriter(folder / s, storage.columns(), append=True)) for s in SPLITS}
        new = scan.count - int(np.isin(scan.keys, present.keys).sum())
        bar = stack.enter_context(Progress("storing pictures", new, "pictures"))
        for number, picture, (key, record) in in_order(storage.record, _new(pictures, scan, present, places), workers):
            bar.update()
            if key is not None and key != int(scan.keys[number]):
                raise scan.changed(pictures, picture)
            if isinstance(record, BadPicture):
                scan.reject(number, record)
                continue
            split = scan.split(number, picture)
            hashed.update(f" {number} {split}".encode())
            label = _place(picture, places)
            out[split].add(**record, label=label, name=picture.name, key=scan.keys[number])
            sums[split]["images"] += 1
            sums[split]["bytes"] += memoryview(record["image"]).nbytes
            if label != UNLABELLED:
                per_class[split][label] += 1
    if present.again:
        moved = f", {present.moved:,} of them under another class, which they keep" if present.moved else ""
        say(f"{pictures.path}: {present.again:,} pictures are in the store already{moved}")
    if not sums["train"]["images"]:
        raise UserError(f"{pictures.path}: no picture is left to train on")
    if sum(sums[split]["images"] - before[split] for split in SPLITS) == 0:
        return facts
    source = {"path": pictures.path} | {split: sums[split]["images"] - before[split] for split in SPLITS}
    return {
        **facts,
        "hash": hashed.hexdigest(),  # of contents, labels, splits and how they are stored: all that a run depends on
        "bad": list(dict.fromkeys([*facts["bad"], *scan.bad.values()])),
        "sources": [*facts["sources"], source],
        **{split: sums[split] | {"per_class": per_class[split].tolist()} for split in SPLITS},
    }


def write_new(
    folder: Path, pictures: PictureSource, scan: Scan, layout: Layout, workers: int | None = None
) -> dict[str, Any]:
    """Fill an empty folder, stored as is best for the good pictures; returns the facts. Errors: see `write`.

    A picture may be found bad only while it is stored: where another storage is best without it, all begins again.
    """
    storage = Storage.of(scan, layout)
    facts = write(folder, pictures, scan, storage, empty_facts(scan, storage, layout), Present.nothing(), workers)
    if Storage.of(scan, layout) == storage:
        return facts
    say(f"{pictures.path}: the pictures left out were others than the rest, which is now stored anew without them")
    for split in SPLITS:
        shutil.rmtree(folder / split)
    return write_new(folder, pictures, scan, layout, workers)


def empty_facts(scan: Scan, storage: Storage, layout: Layout) -> dict[str, Any]:
    """Of a store that these pictures will fill."""
    return {
        "hash": "",
        "classes": list(scan.classes),
        "storage": "raw" if storage.shape else "encoded",
        "shape": storage.shape and list(storage.shape),
        "channels": storage.channels,
        "side": storage.side,
        "frames": storage.frames,
        "split": "own" if scan.own_split else "chosen",
        "held_out_share": layout.held_out,
        "split_seed": layout.split_seed,
        "bad": [],
        "sources": [],
        **{split: {"images": 0, "bytes": 0, "per_class": [0] * len(scan.classes)} for split in SPLITS},
    }


def _new(
    pictures: PictureSource, scan: Scan, present: Present, places: dict[str, int]
) -> Iterator[tuple[int, Picture]]:
    """The good pictures that are not there yet, with their numbers."""
    for number, picture in scan.again(pictures):
        if not present.has(scan.keys[number], _place(picture, places)):
            yield number, picture


def _place(picture: Picture, places: dict[str, int]) -> int:
    return UNLABELLED if picture.label is None else places[picture.label]
