"""A store of pictures on disk: building it, adding to it, what it holds, whether it is whole, and a look into it.

    out/data.json            what was made of which sources: classes, sizes, counts, hash; and before each append
    out/train, out/held_out  records: image (raw, or encoded with image.size), label (-1: none), name, key

Building goes through the source twice: headers, labels and hashes first (picture_scan.py); then the pictures
(picture_filling.py).
"""

import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onefold.core.errors import UserError
from onefold.core.files import (
    MANIFEST,
    atomic_folder,
    disk_error,
    exclusive,
    make_folder,
    put_back,
    verify_folder,
)
from onefold.core.progress import say
from onefold.data.facts import FACTS, PROCESSOR, read_contents, read_facts
from onefold.data.picture_columns import ENDS, Pictures
from onefold.data.pictures.files import decode, encode, fit, spread, with_channels
from onefold.data.pictures.filling import SPLITS, Present, Storage, write, write_new
from onefold.data.pictures.picture import PictureSource
from onefold.data.pictures.scan import UNLABELLED, Layout, Scan
from onefold.data.pictures.sources import open_pictures, picture_stamp
from onefold.data.records import INDEX, Column, Records, RecordsDamaged, find_damage

SHEET, SHEET_SIDE = 64, 128  # frames of a clip that a sample shows at most, and their shorter side


def build(source: str | Path, out: str | Path, /, workers: int | None = None, **settings: Any) -> dict[str, Any]:
    """Make a store at `out` of the pictures at `source` (sources.open_pictures); returns its facts.

    settings: fields of `Layout`. Raises UserError, naming the picture, when one is bad, and leaves nothing at `out`
    then; also where another process is writing there.
    """
    layout, target = Layout.from_dict(settings), _expanded(out).resolve()
    with exclusive(target):
        if target.exists():
            raise UserError(f"{out} exists already: name another place, remove it first, or add to it with --append")
        with atomic_folder(target) as folder:
            facts = fill(folder, source, layout, _threads(workers))
            contents = {"stamps": {str(source): picture_stamp(source)}, "facts": facts}
            (folder / FACTS).write_text(json.dumps(contents, indent=1))
    return facts


def fill(folder: Path, source: str | Path, layout: Layout, workers: int | None = None) -> dict[str, Any]:
    """Write the records of both splits below `folder`; returns the facts, which the caller keeps."""
    pictures = _pictures(source, layout)
    facts = write_new(folder, pictures, Scan.of(pictures, layout, workers), layout, workers)
    say(describe(facts))
    return facts


def append(
    source: str | Path,
    out: str | Path,
    /,
    workers: int | None = None,
    new_classes: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Add the pictures at `source` to the store at `out`, stored and split as those in it are; returns its facts.

    Runs that were begun before go on with what the store held then.

    Pictures that are in it already are left out. Labels keep their numbers; new_classes: classes that the store has
    not get the next ones. settings: held_out, image, label and skip_bad of `Layout`. A source without a split of its
    own adds to training alone where the store's split came from its source. Raises UserError when that cannot be, also
    while another process writes to the store, and leaves it as it was then; whoever has it open goes on reading what it
    was.
    """
    target = _expanded(out).resolve()
    if not is_store(target):
        raise UserError(f"{out} is no store: build one first, without --append")
    if fixed := settings.keys() & {"side", "channels", "raw_bytes", "split_seed", "frames"}:
        raise UserError(f"{min(fixed)} is that of the store: leave it out, or build another store")
    with exclusive(target):
        return _append(source, out, target, _threads(workers), new_classes, settings)


class _NothingNew(Exception):
    """An append is given up, since it would add nothing."""


def _append(
    source: str | Path,
    out: str | Path,
    target: Path,
    workers: int | None,
    new_classes: bool,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """`append`, while nobody else writes."""
    contents = _appendable(target, out)
    facts = contents["facts"]
    share = facts["held_out_share"] if facts["split"] == "chosen" else 0.0
    layout = Layout.from_dict(
        {"held_out": share, "split_seed": facts["split_seed"], "frames": facts["frames"], **settings}
    )
    pictures = _pictures(source, layout)
    scan = Scan.of(pictures, layout, workers, joining=True)
    added = _added_classes(scan.classes, facts["classes"], source, out, new_classes)
    storage = Storage(facts["shape"] and tuple(facts["shape"]), facts["channels"], facts["side"], facts["frames"])
    if storage.channels == 1 < scan.channels():
        say(f"{source} has colours, but {out} is a store of grey pictures, which they become")
    present = Present.of(target)
    if not len(np.setdiff1d(np.delete(scan.keys, list(scan.bad)), present.keys)):
        say(f"{out} is left as it was: all {scan.count:,} pictures of {source} are in it already")
        return facts
    grown, wanted = facts, {**facts, "classes": facts["classes"] + added}
    shards = _shards(target)
    listed = json.loads((target / MANIFEST).read_text()) if (target / MANIFEST).is_file() else {}
    with (
        suppress(_NothingNew),
        atomic_folder(target, {name: listed[name] for name in shards & listed.keys()}) as folder,
    ):
        _carry_over(target, folder, shards)
        grown = write(folder, pictures, scan, storage, wanted, present, workers)
        if grown is wanted:
            raise _NothingNew
        contents["stamps"][str(source)] = picture_stamp(source)
        contents |= {"facts": grown, "states": [*contents.get("states", []), _state(facts)]}
        (folder / FACTS).write_text(json.dumps(contents, indent=1))
    if grown is wanted:
        say(f"{out} is left as it was: what {source} has is in it already, or bad")
        return facts
    more = sum(grown[split]["images"] - facts[split]["images"] for split in SPLITS)
    say(f"{more:,} added; {describe(grown)}")
    return grown


def is_store(path: str | Path) -> bool:
    """Whether `build` made what lies at `path`."""
    folder = _expanded(path)
    put_back(folder)
    return (folder / FACTS).is_file() and (folder / "train" / INDEX).is_file()


def info(path: str | Path) -> dict[str, Any]:
    """What lies at `path`: the facts of a prepared folder, and rows, pages, bytes and columns of each of its records.

    Reads no rows. Raises UserError when there are no records.
    """
    described = {}
    for name, folder in _stores(_expanded(path)).items():
        records = Records(folder)
        described[name] = {
            "rows": len(records),
            "pages": len(records.pages) - 1,
            "bytes": sum(f.stat().st_size for f in folder.glob("*.arrow")),
            "columns": {name: _type(name, records.columns) for name in records.columns},
        }
    return {"facts": _facts(_expanded(path)), "records": described}


def verify(path: str | Path) -> list[str]:
    """What is damaged at `path`, a line each, with the page and its rows; empty when every checksum is right.

    Every file is read once. Raises UserError when there are no records.
    """
    problems, compared, stores = [], set(), _stores(_expanded(path))
    for name, folder in stores.items():
        try:
            problems += find_damage(folder)
            compared |= {f"{name}/{shard}" for shard in _named(folder)}
        except RecordsDamaged as error:
            problems.append(str(error))
            compared.add(f"{name}/{INDEX}")
    if SPLITS[0] in stores and not (_expanded(path) / INDEX).is_file():  # the other files
        problems += verify_folder(_expanded(path), compared)
    return problems


def sample(path: str | Path, out: str | Path, count: int = 16, split: str | None = None, seed: int = 0) -> list[Path]:
    """Write some records for a person to look at: pictures as PNG or as they came, texts as .txt. Returns the files.

    A clip is one picture of its frames side by side, in rows.

    split: which of the records; None: the first. Raises UserError when there is nothing to show.
    """
    stores = _stores(_expanded(path))
    if split is not None and split not in stores:
        raise UserError(f"{path} has no {split}: there are {', '.join(stores)}")
    records = Records(stores[split or next(iter(stores))])
    shown = [name for name, column in records.columns.items() if column.dtype == "image"]
    if not shown:
        shown = [name for name, column in records.columns.items() if column.dtype == "text" and name != "name"]
    if not shown or not len(records):
        raise UserError(f"{path} holds no pictures and no texts to show")
    classes = _facts(_expanded(path)).get("classes", [])
    rows = np.sort(np.random.default_rng(seed).permutation(len(records))[:count]).tolist()
    written, place = [], _expanded(out)
    make_folder(place)
    for row in rows:
        label = int(records["label"][row]) if "label" in records.columns else UNLABELLED
        named = f"{row:06}" + (f"-{_plain(classes[label])}" if 0 <= label < len(classes) else "")
        for column in shown:
            content, suffix = _shown(records, column, row)
            file = place / f"{named}{'' if len(shown) == 1 else '-' + _plain(column)}{suffix}"
            try:
                file.write_bytes(content)
            except OSError as error:
                raise disk_error(file, error) from error
            written.append(file)
    return written


def describe(facts: dict[str, Any]) -> str:
    """One line: pictures, classes, how they are stored, what was left out."""
    train, held_out = facts["train"], facts["held_out"]
    classes = f"{len(facts['classes']):,} classes" if facts["classes"] else "no labels"
    size = " × ".join(map(str, facts["shape"])) if facts["shape"] else "of their own sizes"
    left_out = f"; {len(facts['bad']):,} bad left out" if facts["bad"] else ""
    kind = "clips" if facts["frames"] else "pictures"
    return (
        f"{kind}: {train['images']:,} to train on, {held_out['images']:,} held out, {classes}; {facts['storage']}, "
        f"{size}, {(train['bytes'] + held_out['bytes']) / 1e6:.1f} MB, hash {facts['hash']}{left_out}"
    )


def _appendable(target: Path, out: str | Path) -> dict[str, Any]:
    """The contents of `data.json` of a store that can be added to."""
    if (target / PROCESSOR).exists():
        raise UserError(f"{out} was prepared for a run: append to a store that `onefold data build` made")
    contents = read_contents(target)
    if "sources" not in contents["facts"]:
        raise UserError(f"{out} was built by an older Onefold, which kept too little to add to it: build it anew")
    return contents


def _state(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the rows and classes that a store has now from those that come later, so that runs can go on."""
    counts = {split: {name: facts[split][name] for name in ("images", "bytes")} for split in SPLITS}
    return {"hash": facts["hash"], "classes": len(facts["classes"]), **counts}


def _pictures(source: str | Path, layout: Layout) -> PictureSource:
    if is_store(source):
        raise UserError(f"{source} is a store already: give the pictures that it was made of")
    return open_pictures(source, layout.image, layout.label)


def _threads(workers: Any) -> int | None:
    if workers is not None and (type(workers) is not int or workers < 1):
        raise UserError(f"workers is a number of threads, not {workers!r}")
    return workers


def _added_classes(
    found: tuple[str, ...], known: list[str], source: str | Path, out: str | Path, wanted: bool
) -> list[str]:
    """Those that get the next numbers. Raises UserError when they are not wanted, or one side has no labels at all."""
    if bool(found) != bool(known):
        has, has_not = (source, out) if found else (out, source)
        raise UserError(f"the pictures of {has} have labels, those of {has_not} none: they cannot be one store")
    added = [name for name in found if name not in known]
    if added and not wanted:
        named = ", ".join(added[:5]) + (f" and {len(added) - 5} more" if len(added) > 5 else "")
        raise UserError(
            f"{source} has classes that {out} has not: {named}. Rename their folders, or give --new-classes to add them"
        )
    return added


def _named(folder: Path) -> list[str]:
    """The shards of records."""
    return [shard["file"] for shard in json.loads((folder / INDEX).read_text())["shards"]]


def _shards(target: Path) -> set[str]:
    return {f"{split}/{name}" for split in SPLITS for name in _named(target / split)}


def _carry_over(target: Path, folder: Path, shards: Collection[str]) -> None:
    """Link the files of a store into `folder`, but for those that are written anew and shards that nobody names."""
    indices = (f"{split}/{INDEX}" for split in SPLITS)  # a walk enters no split that is a link to a folder elsewhere
    others = (f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file() and f.suffix != ".arrow")
    for name in sorted({*shards, *indices, *others} - {FACTS, MANIFEST}):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link((target / name).resolve(), folder / name)


def _link(file: Path, to: Path) -> None:
    """The same file in another folder, without a copy where the disk can do that. Stores never change a shard."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)  # its time, too, which says that it is the same


def _stores(path: Path) -> dict[str, Path]:
    """The records at or directly below a path, by name."""
    put_back(path)
    if (path / INDEX).is_file():
        return {path.name: path}
    below = {folder.parent.name: folder.parent for folder in sorted(path.glob(f"*/{INDEX}"))}
    if not below:
        raise UserError(f"{path} holds no records: give what `onefold data build` or a run's data folder has")
    return {name: below[name] for name in sorted(below, key=lambda name: (name not in SPLITS, name == SPLITS[1], name))}


def _facts(path: Path) -> dict[str, Any]:
    return read_facts(path) if (path / FACTS).exists() else {}


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))


def _type(name: str, columns: Mapping[str, Column]) -> str:
    column = columns[name]
    if column.dtype == "image":
        encoded = "encoded clips" if name + ENDS in columns else "encoded pictures"
        return "raw pixels " + " × ".join(map(str, column.shape)) if column.shape else encoded
    return column.dtype + (" of any length" if column.ragged else f" {list(column.shape)}" if column.shape else "")


def _shown(records: Records, column: str, row: int) -> tuple[bytes, str]:
    """(the content, the suffix) of the file that shows a value."""
    if records.columns[column].dtype == "text":
        return str(records[column][row]).encode(), ".txt"
    view = records.pictures(column)
    if view.frames(row) > 1:
        return encode(_sheet(view, row)), ".png"
    if view.shape is None:
        data = bytes(view.encoded(row))
        return data, ".jpg" if data[:2] == b"\xff\xd8" else ".png"
    pixels = view.gather(np.array([row]))[0]
    return encode(pixels[0] if len(view.shape) == 4 else pixels), ".png"


def _sheet(view: Pictures, row: int) -> np.ndarray:
    """Frames of a clip in rows, from left to right: UInt8[H, W, C]. Of a long one some, evenly spread."""
    numbers = spread(view.frames(row), SHEET)
    if view.shape is None:
        frames = [decode(view.encoded(row, n), f"frame {n} of row {row}", None, SHEET_SIDE) for n in numbers]
        frames = [with_channels(frame, max(f.shape[-1] for f in frames)) for frame in frames]
    else:
        clip = view.gather(np.array([row]))[0]
        frames = [fit(clip[n], SHEET_SIDE) for n in numbers]
    across = math.ceil(math.sqrt(len(frames)))
    frames += [np.zeros_like(frames[0])] * (-len(frames) % across)
    lines = [np.concatenate(frames[i : i + across], axis=1) for i in range(0, len(frames), across)]
    return np.concatenate(lines, axis=0)


def _plain(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)[:60]
