"""Batches of pictures from records: gathered or decoded, cut, changed at random; and what their values are like."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from onefold.core.batch import ImageBatch
from onefold.core.cores import cores
from onefold.core.errors import missing_extra
from onefold.data.ahead import Slots, to_tensor
from onefold.data.draws import Draws
from onefold.data.order import Epoch
from onefold.data.picture_columns import Pictures as Stored
from onefold.data.pictures.reader import PictureReader
from onefold.data.pictures.transforms.base import Pictures, Transform, apply
from onefold.data.pictures.transforms.frame import Frame
from onefold.data.records import Records

MEASURED = 4096  # pictures at most that mean and standard deviation are taken from; of encoded ones a quarter
MEASURED_SIDE = 224  # at which encoded ones are
MOST_THREADS = 8


class PictureBatches:
    """Called with an epoch and places in its order, makes the batch of the rows there. Threads may share it."""

    def __init__(
        self,
        records: Records,
        reader: PictureReader,
        places: np.ndarray,
        frame: Frame,
        transforms: tuple[Transform, ...],
        seed: int,
    ):
        """places: Int64[classes of the records], which class of the reader each is."""
        self._labels, self._slots = records.strided("label"), Slots()
        self._reader, self._places, self._transforms, self._seed = reader, places, transforms, seed
        pictures = records.pictures()
        if pictures.shape:
            self._fetch = _Raw(pictures, frame, reader.channels, self._slots)
            # Copying is bound by memory, not by processors: there a second thread only costs.
            useful = 1 if self._fetch.kept and not transforms else 2
        else:
            self._fetch = _Encoded(pictures, records["name"], frame, reader.channels, self._slots)
            useful = MOST_THREADS
        self.threads = min(useful, _cpus())

    def __call__(self, epoch: Epoch, places: slice) -> ImageBatch:
        rows = epoch.order[places]
        draws = Draws(self._seed, epoch.number, rows)
        images = self._fetch(rows, draws)
        pictures = apply(self._transforms, Pictures(images, self._targets(rows), self._slots), draws)
        targets = None if pictures.targets is None else to_tensor(pictures.targets)
        return ImageBatch(
            images=to_tensor(pictures.images).permute(0, 3, 1, 2),
            targets=targets,
            rows_of=to_tensor(rows),
            mean=self._reader.mean,
            std=self._reader.std,
        )

    def _targets(self, rows: np.ndarray) -> np.ndarray | None:
        """Float32[B, classes]; None where pictures have no labels."""
        if not len(self._places):
            return None
        targets = np.zeros((len(rows), len(self._reader.classes)), np.float32)
        targets[np.arange(len(rows)), self._places[self._labels.gather(rows)]] = 1
        return targets


class _Raw:
    """Pictures of one shape: rows become UInt8[B, side, side, channels]. `kept`: they are so already."""

    def __init__(self, pictures: Stored, frame: Frame, channels: int, slots: Slots):
        self._pictures, self._frame, self._channels, self._slots = pictures, frame, channels, slots
        self._shape = pictures.shape or ()
        self._whole = frame.keeps(*self._shape[:2])
        self.kept = self._whole and self._shape[-1] == channels

    def __call__(self, rows: np.ndarray, draws: Draws) -> np.ndarray:
        images = self._pictures.gather(rows, self._slots.empty((len(rows), *self._shape)))
        if self._shape[-1] > self._channels:  # before they are cut, as with pictures that are decoded first
            images = in_channels(images, self._channels, self._slots)
        if not self._whole:
            images = self._frame(Pictures(images, None, self._slots), draws).images
        return in_channels(images, self._channels, self._slots)


class _Encoded:
    """Pictures as files, of any sizes: the same."""

    def __init__(self, pictures: Stored, names: Any, frame: Frame, channels: int, slots: Slots):
        self._pictures, self._names, self._frame, self._channels = pictures, names, frame, channels
        self._sizes, self._slots, self._cut = pictures.sizes[:, :2], slots, decoder()

    def __call__(self, rows: np.ndarray, draws: Draws) -> np.ndarray:
        frame, sizes = self._frame, self._sizes[rows].astype(np.int64)
        images = self._slots.empty((len(rows), frame.side, frame.side, self._channels))
        for place, row, size, box in zip(images, rows.tolist(), sizes, frame.boxes(sizes, draws)):
            data, name = self._pictures.encoded(row), str(self._names[row])
            place[:] = self._cut(data, name, size, box, frame.side, self._channels, frame.interpolation)
        return images


def in_channels(images: np.ndarray, channels: int, slots: Slots) -> np.ndarray:
    """UInt8[..., C] as [..., channels], bit for bit what files.with_channels makes of each picture.

    Grey is repeated, colour becomes luma (ITU-R BT.601), what is transparent becomes white.
    """
    has = images.shape[-1]
    if has == channels:
        return images
    out = slots.empty((*images.shape[:-1], channels))
    if channels == 4:
        out[..., :3], out[..., 3] = in_channels(images, 3, slots), 255
        return out
    if has == 4:
        opacity = images[..., 3:].astype(np.uint16)
        mixed = images[..., :3] * opacity
        mixed += 255 * (255 - opacity) + 128
        mixed += mixed >> 8  # with the next shift, division by 255, rounded
        images = (mixed >> 8).astype(np.uint8)
    if channels == 1 and has > 1:
        weights = np.array([19595, 38470, 7471], np.uint32)  # of 65,536
        luma = images[..., 0] * weights[0]
        for channel in (1, 2):
            luma += images[..., channel] * weights[channel]
        out[..., 0] = (luma + np.uint32(1 << 15)) >> 16
    else:
        out[:] = images
    return out


def measure(pictures: Stored, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values from 0 to 1, over pictures from all over the file."""
    few = MEASURED if pictures.shape else MEASURED // 4
    rows = np.unique(np.linspace(0, len(pictures) - 1, few).astype(np.int64))
    counts = np.zeros((channels, 256))  # how often each value occurs
    sizes, slots = pictures.sizes[rows, :2], Slots()
    for row, size in zip(rows.tolist(), sizes):
        if pictures.shape:
            found = in_channels(pictures.gather(np.array([row])), channels, slots)[0]
        else:
            found = decoder()(
                pictures.encoded(row), f"picture {row}", size, np.array([0, 0, *size]), MEASURED_SIDE, channels
            )
        counts += [np.bincount(found[..., c].reshape(-1), minlength=256) for c in range(channels)]
    values, shares = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    # A channel that never changes still needs a scale.
    std = np.maximum(np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1)), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def decoder() -> Callable[..., np.ndarray]:
    """jpeg.cut_out. Errors: UserError where the package that decodes is missing."""
    try:
        from onefold.data.pictures.jpeg import cut_out
    except ImportError:
        raise missing_extra("simplejpeg", "vision", "reading pictures that are stored as files") from None
    return cut_out


def _cpus() -> int:
    """This process's share of those that it may use."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
