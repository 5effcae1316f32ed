"""The first reading of pictures that become a store: headers, labels and hashes, which decide everything else."""

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar, cast

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.cores import cores
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.pictures.files import MIN_SIDE, BadPicture, Channels, header, shrunk
from onefold.data.pictures.picture import Picture, PictureSource
from onefold.data.split import choose

UNLABELLED = -1
MOST_FRAMES = 1024  # that may be kept of a clip
AHEAD_BYTES = 512 << 20  # of files and pixels that threads have read, or are to read, before it is their turn
TOLD = 20  # bad pictures that are named at once; all are listed in the end

Found = TypeVar("Found")


class Layout(Config):
    """How pictures are stored. Raw pixels are the fastest to read, encoded ones the smallest to keep."""

    side: int | None = Field(default=None, ge=MIN_SIDE)  # what the shorter side is brought down to; None: all is kept
    channels: Channels | None = None  # None: 1 where all are grey, else 3
    raw_bytes: int = Field(default=1 << 16, ge=0)  # pictures that then have one size, no larger, become raw pixels
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share, where the source has no split of its own
    split_seed: int = Field(default=0, ge=0)
    image: str | None = None  # columns of a table: the picture (a path or bytes), its label
    label: str | None = None
    frames: int | None = Field(
        default=None, ge=1, le=MOST_FRAMES
    )  # of a clip, at most; None: stills, of the first frame
    skip_bad: bool = False  # leave bad pictures out and list them, instead of stopping at the first


@dataclass
class Scan:
    """Of picture i of a source: keys[i] (UInt64, of its content) and sizes[i] (height, width, channels); all labels."""

    keys: np.ndarray
    sizes: np.ndarray
    classes: tuple[str, ...]
    bad: dict[int, str]  # why picture i cannot be used
    own_split: bool  # the source's own
    held_out: np.ndarray  # where it has none: `order` of the keys held out, sorted
    seed: int
    skip_bad: bool
    hash: str = ""  # of contents and labels, in their order
    below: int = 0  # for pictures that join a store: those with an `order` below this are held out

    @classmethod
    def of(cls, pictures: PictureSource, layout: Layout, workers: int | None = None, joining: bool = False) -> "Scan":
        """Raises UserError when there is nothing to use, labels are missing, or a picture is bad (without skip_bad).

        joining: a store that has pictures already. Who is held out then depends on each alone, not on how many come.
        """
        keys, sizes, labels, splits, unlabelled = array("Q"), array("i"), Counter(), set(), None
        nothing, hashed = np.empty(0, np.uint64), blake2b(digest_size=8)
        empty = np.empty((0, 3), np.int32)
        moving, longest, most = 0, 0, layout.frames or 1
        look = partial(_look, count=layout.frames is not None)
        scan = cls(nothing, empty, (), {}, False, nothing, layout.split_seed, layout.skip_bad)
        with Progress("looking at pictures", unit="pictures") as bar:
            for number, picture, found in in_order(look, enumerate(pictures), workers):
                bar.update()
                if isinstance(found, BadPicture):
                    scan.reject(number, found)
                key, size, frames = (0, (0, 0, 0), 1) if isinstance(found, BadPicture) else found
                moving, longest = moving + (frames > most), max(longest, frames)
                keys.append(key)
                sizes.extend(size)
                if isinstance(found, BadPicture):
                    continue
                hashed.update(_named(key, picture))
                splits.add(picture.split)
                if picture.label is not None:
                    labels[picture.label] += 1
                elif unlabelled is None:
                    unlabelled = picture.where
        if not splits:
            raise UserError(f"{pictures.path} holds no pictures" + (" that can be read" if keys else ""))
        if labels and unlabelled:
            raise UserError(f"{unlabelled} has no label, and others have: put it into the folder of its class, or away")
        if moving:
            say(f"{pictures.path}: {_too_long(moving, longest, layout.frames)}")
        scan.keys, scan.sizes = np.array(keys, np.uint64), np.array(sizes, np.int32).reshape(-1, 3)
        scan.classes, scan.own_split = _classes(pictures, labels), splits != {None}
        scan.hash = hashed.hexdigest()
        if joining:
            scan.below = int(layout.held_out * 2**64)
        elif not scan.own_split:
            good = scan.order(np.delete(scan.keys, list(scan.bad)))
            scan.held_out = choose(good, np.ones(len(good), np.int64), layout.held_out).held_out
            if layout.held_out and not len(scan.held_out):
                say(f"{len(good)} pictures are too few to hold any out")
        return scan

    @property
    def count(self) -> int:
        return len(self.keys) - len(self.bad)

    def order(self, keys: np.ndarray) -> np.ndarray:
        """Who is held out first: with another seed other pictures, equal ones always together."""
        seed = blake2b(self.seed.to_bytes(8, "little"), digest_size=8).digest()
        return keys ^ np.uint64(int.from_bytes(seed))

    def reject(self, number: int, why: BadPicture) -> None:
        """Leave a bad picture out. Raises UserError where that is not wanted."""
        if not self.skip_bad:
            raise UserError(f"{why}\n(skip_bad=true leaves such pictures out and lists them)") from None
        self.bad[number] = str(why)
        if len(self.bad) <= TOLD:
            say(f"left out: {why}")

    def again(self, pictures: PictureSource) -> Iterator[tuple[int, Picture]]:
        """The good pictures and their numbers, in a second reading. Raises UserError where others come than before."""
        hashed, number, known = blake2b(digest_size=8), -1, {None, *self.classes}
        for number, picture in enumerate(pictures):
            if number == len(self.keys):
                raise self.changed(pictures, picture)
            if not self.sizes[number].any():  # bad from the first
                continue
            if picture.label not in known:
                raise self.changed(pictures, picture)
            hashed.update(_named(int(self.keys[number]), picture))
            if number not in self.bad:
                yield number, picture
        if number + 1 < len(self.keys) or hashed.hexdigest() != self.hash:
            raise self.changed(pictures)

    def changed(self, pictures: PictureSource, picture: Picture | None = None) -> UserError:
        where = f" ({picture.where})" if picture else ""
        return UserError(f"{pictures.path} has changed while it was read{where}: build again")

    def size(self, side: int | None) -> tuple[int, int] | None:
        """(height, width) of all pictures, where they have the same once `shrunk` to `side`."""
        sizes = np.unique(np.delete(self.sizes[:, :2], list(self.bad), 0), axis=0).tolist()
        found = {shrunk(height, width, side) for height, width in sizes}
        return found.pop() if len(found) == 1 else None

    def channels(self) -> Channels:
        """1 where all are grey, else 3 (or 4)."""
        return cast("Channels", int(np.delete(self.sizes[:, 2], list(self.bad)).max()))

    def split(self, number: int, picture: Picture) -> str:
        if self.own_split:
            return picture.split or "train"
        key = self.order(self.keys[number])
        if int(key) < self.below:
            return "held_out"
        place = np.searchsorted(self.held_out, key)
        return "held_out" if place < len(self.held_out) and self.held_out[place] == key else "train"


def in_order(
    work: Callable[[Picture], Found], pictures: Iterable[tuple[int, Picture]], workers: int | None = None
) -> Iterator[tuple[int, Picture, Found]]:
    """(number, picture, work(picture)), in their order, though `workers` threads (None: one for each core) work.

    No more than a few pictures for each thread are ahead, and no more than AHEAD_BYTES of them, unless one alone has.
    """
    workers = workers or cores()
    waiting, ahead = deque(), 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, picture in pictures:
                size = picture.bytes
                while waiting and (len(waiting) > 4 * workers or ahead + size > AHEAD_BYTES):
                    *done, made, freed = waiting.popleft()
                    ahead -= freed
                    yield *done, made.result()
                waiting.append((number, picture, pool.submit(work, picture), size))
                ahead += size
            while waiting:
                *done, made, _ = waiting.popleft()
                yield *done, made.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def content_key(data: bytes) -> int:
    """64 bits that are equal for equal files, or pixels."""
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def _named(key: int, picture: Picture) -> bytes:
    return key.to_bytes(8, "little") + repr(picture.label).encode()


def _too_long(moving: int, longest: int, most: int | None) -> str:
    if most is None:
        return (
            f"{moving:,} pictures have several frames, of which the first counts (a store with frames=16 keeps clips)"
        )
    return f"of {moving:,} clips {most:,} frames are kept, evenly spread; the longest has {longest:,}"


def _look(picture: Picture, count: bool) -> tuple[int, tuple[int, int, int], int] | BadPicture:
    """(key, size, frames); what is wrong with a bad picture is returned, so that the others go on."""
    try:
        if picture.pixels is not None:
            size, data, frames = picture.pixels.shape, picture.pixels.tobytes(), 1
            if min(size[:2]) < MIN_SIDE:
                raise BadPicture(f"{picture.where} has only {size[1]} × {size[0]} pixels")
        else:
            data = picture.data or b""
            found = header(data, picture.where, count)
            size, frames = (found.height, found.width, found.channels), found.frames
    except BadPicture as error:
        return error
    return content_key(data), (size[0], size[1], size[2]), frames


def _classes(pictures: PictureSource, labels: Counter[str]) -> tuple[str, ...]:
    """The source's own names, or the labels that there are: numbers by size, names by the alphabet."""
    if pictures.classes is not None:
        if strange := [label for label in labels if label not in pictures.classes]:
            raise UserError(f"{pictures.path}: label {strange[0]} is none of its {len(pictures.classes)} classes")
        return pictures.classes
    if alone := [label for label, count in labels.items() if count == 1]:
        others = f" and {len(alone) - 1} others have" if len(alone) > 1 else " has"
        say(f"{pictures.path}: class {alone[0]}{others} a single picture, to learn from or to test on, not both")
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=int if numbers else str))
