"""Pictures as training data: a source → records of two splits → batches of bytes, augmented a batch at a time."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.batch import Batch, ImageBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.facts import FACTS, read_contents
from onefold.data.loader import Evaluation, Loader
from onefold.data.order import Epoch, Kind, plan_epoch
from onefold.data.pictures.batches import PictureBatches, measure
from onefold.data.pictures.reader import PictureReader
from onefold.data.pictures.scan import UNLABELLED
from onefold.data.pictures.sources import DIGITS, picture_stamp
from onefold.data.pictures.store import Layout, fill, is_store
from onefold.data.pictures.transforms import FRAMES, Augmentation
from onefold.data.pictures.transforms.base import Transform
from onefold.data.pictures.transforms.frame import Frame, Interpolation
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records

PAGE_BYTES = 4 << 20  # neighbours that order="pages" reads together


class ImageData(Config):
    """Pictures and their classes.

    `augment` changes training pictures, one transform after another; one that cuts (random_resized_crop, …) can only
    be the first. Others are cut as the model will see them later: the middle square of `share` of the shorter side,
    resized to `side`.
    """

    kind: Literal["images"] = "images"
    path: str = DIGITS  # a folder by class, a table, IDX files, a dataset on disk; or a store, used where it lies
    side: int | None = Field(default=None, ge=1)  # pixels that a model sees; None: that of the model, or as they are
    share: float = Field(default=1.0, gt=0, le=1)
    interpolation: Interpolation | None = None  # None: of the model, or bilinear
    channels: Literal[1, 3] | None = None  # None: that of the model, or 1 where all are grey, else 3
    mean: tuple[float, ...] | None = None  # of each channel, of values from 0 to 1; None: of the model, or measured
    std: tuple[float, ...] | None = None
    augment: tuple[Augmentation, ...] = ()
    order: Kind = "random"  # pages: for data larger than memory on a disk that does not like to jump
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share, where the source has no split of its own
    split_seed: int = Field(default=0, ge=0)
    store_side: int | None = Field(default=None, ge=4)  # what shorter sides come down to on disk; None: all is kept
    raw_bytes: int = Field(default=1 << 16, ge=0)  # pictures that then have one size, no larger, become raw pixels
    image: str | None = None  # columns of a table: the picture (a path or bytes), its label
    label: str | None = None
    skip_bad: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for number, transform in enumerate(self.augment):
            if number and isinstance(transform, FRAMES):
                text = f"augment.{number}: {transform.kind} decides what is read of a picture, so it must come first"
                raise PydanticCustomError("order", "{text}", {"text": text})
        if (self.mean is None) != (self.std is None):
            raise PydanticCustomError("scale", "give mean and std, or none of both")
        return self

    def layout(self, channels: int | None) -> Layout:
        """How the pictures are stored."""
        settings = {
            name: getattr(self, name) for name in Layout.model_fields if name not in ("side", "channels", "frames")
        }
        return Layout(side=self.store_side, channels=channels, **settings)

    def prepare(
        self, folder: Path, reader: PictureReader | None = None, keep: bool = False, state: str | None = None
    ) -> "ImageDataset":
        """The pictures as records, made in a subfolder of `folder` or found there from an earlier time.

        reader: of the model to go on with; its size, channels and scale hold where this config says nothing, and its
        classes where they are the same or more. keep: go on with what was prepared even where the source has changed
        since. state: the hash of what a store was before something was appended, to have that. Raises UserError when
        there are no pictures, or what was prepared is damaged and its source gone.
        """
        path = os.path.expanduser(self.path)
        if is_store(path):
            return ImageDataset(Path(path), self, reader, state)
        layout = self.layout(self.channels or (reader.channels if reader else None))
        target = Path(folder) / folder_name("images", {"path": path, **layout.to_dict()})
        prepared(target, {path: picture_stamp(path)}, keep, partial(_build, source=path, layout=layout))
        return ImageDataset(target, self, reader)


class ImageDataset:
    """What `prepare` returns.

    `processor` says how a model sees the pictures, `classes` names them; `facts` has the hash of the source and, for
    each split, the number of images.
    """

    batch: type[Batch] = ImageBatch
    unit = batch.unit

    def __init__(self, folder: Path, config: ImageData, reader: PictureReader | None = None, state: str | None = None):
        """state: which of the states that a store has been in; one that it has never been in changes nothing."""
        self.facts, earlier = _at(read_contents(folder), state)
        if earlier:
            count = self.facts["train"]["images"]
            say(f"{folder} has been added to since: going on with the {count:,} pictures of then")
        if self.facts.get("frames"):
            raise UserError(f"{folder} holds clips, but these models see stills: build a store of them without frames=")
        self.config = config
        self._records = {s: Records(folder / s, rows=self.facts[s]["images"] if earlier else None) for s in SPLITS}
        _compare(folder, self.facts, self._records)
        if "mean" not in self.facts:  # a store that somebody built
            channels = config.channels or (reader.channels if reader else self.facts["channels"])
            mean, std = measure(self._records["train"].pictures(), channels)
            self.facts |= {"mean": mean, "std": std}
        self.processor = self._reader(reader)
        self.classes = self.processor.classes
        place = {name: i for i, name in enumerate(self.classes)}
        self._places = np.array([place[name] for name in self.facts["classes"]], np.int64)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.processor.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.processor.std

    def loader(
        self,
        split: Split,
        rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        state: dict[str, int] | None = None,
    ) -> Loader[Epoch, ImageBatch]:
        """Endless augmented batches, `rows` pictures over all processes together, of which this one gets rows / world.

        Every picture comes once in an epoch; the last batch of one is filled up with pictures that it began with. A
        picture is changed by numbers drawn from (seed, epoch, row), whatever the number of processes.
        """
        self._check(split)
        side = self.processor.side
        transforms = tuple(t.build(side) if isinstance(t, FRAMES) else t.build() for t in self.config.augment)
        make = self._batches(split, transforms, seed)
        return Loader(partial(self.plan, split, rows, seed), make, rows, rank, world, state, make.threads)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> Epoch:
        """What the loader reads in an epoch."""
        facts = self.facts[split]
        page_rows = max(1, PAGE_BYTES * facts["images"] // max(1, facts["bytes"]))
        return plan_epoch(facts["images"], rows, self.config.order, seed, epoch, page_rows)

    def evaluation(self, split: Split, rows: int) -> Evaluation[Epoch, ImageBatch]:
        """Every picture of the split once, as it is, always in the same order, of which any beginning is fair."""
        self._check(split)
        count, make = len(self._records[split]), self._batches(split, (), 0)
        return Evaluation(plan_epoch(count, count), make, count, rows, make.threads)

    def size(self, split: Split) -> int:
        """Images."""
        return self.facts[split]["images"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config for pictures of this size and these classes; said where it was made otherwise.

        grow: it is that of a model to go on with, so that nobody asked for what it has now. Raises UserError when it
        is no model of pictures, or of pictures with other channels.
        """
        reader = self.processor
        has = {name: getattr(model, name, None) for name in ("image", "channels", "classes")}
        if has["image"] is None:
            raise UserError(f"pictures need a vision model, not a {getattr(model, 'kind', 'model of another kind')}")
        if has["channels"] != reader.channels:
            raise UserError(
                f"the pictures have {reader.channels} channels, the model {has['channels']}: "
                f"set data.channels or model.channels"
            )
        wanted = {"image": reader.side, "classes": len(self.classes) or None}
        other = {name: n for name, n in wanted.items() if n and has[name] not in (n, None)}
        if has["classes"] == 0:
            other.pop("classes", None)  # a model without a classifier
        for name in other:
            if not grow:
                say(f"the model is made for the data: model.{name}={other[name]} instead of {has[name]}")
        nested = "encoder." if "encoder" in type(model).model_fields else ""
        return model.but({nested + name: n for name, n in other.items()}) if other else model

    def _reader(self, reader: PictureReader | None) -> PictureReader:
        config, facts = self.config, self.facts
        classes = tuple(facts["classes"])
        if reader and set(classes) <= set(reader.classes):
            classes = reader.classes
        side = config.side or (reader.side if reader else None) or self._own_side()
        share = min(1, reader.side / (reader.resize or reader.side)) if reader and config.share == 1 else config.share
        channels = config.channels or (reader.channels if reader else facts["channels"])
        mean, std = config.mean, config.std
        if mean is None or std is None:
            mean, std = (reader.mean, reader.std) if reader else (facts["mean"], facts["std"])
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise UserError(f"data.{name} has {len(values)} values for pictures of {channels} channels")
        return PictureReader(
            side=side,
            resize=None if share == 1 else round(side / share),
            squeeze=bool(reader and reader.squeeze and config.share == 1),
            channels=channels,
            mean=tuple(mean),
            std=tuple(std),
            interpolation=config.interpolation or (reader.interpolation if reader else "bilinear"),
            classes=classes,
        )

    def _own_side(self) -> int:
        """Of pictures that are all alike."""
        sizes = {
            tuple(size) for r in self._records.values() if len(r) for size in np.unique(r.pictures().sizes, axis=0)
        }
        sides = {int(side) for height, width, _ in sizes for side in (height, width)}
        if len(sides) > 1:
            raise UserError(
                f"the pictures have from {min(sides)} to {max(sides)} pixels a side: say with data.side which square "
                "of them a model sees"
            )
        return sides.pop()

    def _batches(self, split: Split, transforms: tuple[Transform, ...], seed: int) -> PictureBatches:
        reader = self.processor
        frame = reader.frame()
        if transforms and isinstance(transforms[0], Frame):
            frame, *rest = transforms
            transforms = tuple(rest)
        return PictureBatches(self._records[split], reader, self._places, frame, transforms, seed)

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.facts[split]["images"]:
            reason = "set held_out above 0" if split == "held_out" else "give more pictures"
            raise UserError(f"the {split} split of the data is empty: {reason}")


def _at(contents: Mapping[str, Any], hash: str | None) -> tuple[dict[str, Any], bool]:
    """(The facts of a store when it had this hash, whether that was before an append); else those of now."""
    facts = contents["facts"]
    found = [state for state in contents.get("states", []) if state["hash"] == hash != facts["hash"]]
    if not found:
        return facts, False
    return {**facts, **found[0], "classes": facts["classes"][: found[0]["classes"]]}, True


def _compare(folder: Path, facts: Mapping[str, Any], records: Mapping[str, Records]) -> None:
    """Raises UserError where the records are not those that `data.json` tells of."""
    try:
        wanted, count = {split: facts[split]["images"] for split in SPLITS}, len(facts["classes"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / FACTS} is damaged: restore it, or prepare the data again") from None
    for split, found in records.items():
        labels = found.strided("label").gather(np.arange(len(found)))
        if len(labels) != wanted[split]:
            raise UserError(
                f"{folder / split} holds {len(labels):,} pictures, but {FACTS} says {wanted[split]:,}: "
                "restore the store, or build it anew"
            )
        strange = (labels < 0) | (labels >= count) if count else labels != UNLABELLED
        if strange.any():
            raise UserError(
                f"{folder / split} has the label {labels[strange][0]}, but {FACTS} names {count} classes: "
                "restore the store, or build it anew"
            )


def _build(folder: Path, source: str, layout: Layout) -> tuple[PictureReader, dict[str, Any]]:
    """Fill a folder; returns how its pictures are read if nothing else is asked for, and the facts."""
    facts = fill(folder, source, layout)
    channels = facts["channels"]
    mean, std = measure(Records(folder / "train").pictures(), channels)
    reader = PictureReader(side=1, channels=channels, mean=mean, std=std, classes=tuple(facts["classes"]))
    return reader, {**facts, "channels": channels, "mean": mean, "std": std}
