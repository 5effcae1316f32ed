"""One pass over the same bytes in the same folder, by torch's DataLoader and by Onefold's loader.

    tokens   windows of 1,024 tokens, and what follows each, as int64
    small    32 x 32 pictures: moved by up to 4 pixels, mirrored, normalised to float32
    jpeg     256 x 256 JPEGs: a random part of each, resized to 128 x 128
    raw      128 x 128 pictures as they lie on disk

The check of ffcv.py and benchmarks/loader.py race them. Bytes are random, but as compressible as photographs are.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from onefold.core.errors import missing_extra
from onefold.data.loader import Loader
from onefold.data.order import plan_epoch
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.pictures.batches import PictureBatches
from onefold.data.pictures.reader import PictureReader
from onefold.data.pictures.transforms import CentreCrop, Flip, PadCrop, RandomResizedCrop
from onefold.data.records import Column, Records, RecordsWriter
from onefold.data.text.plan import plan_rows
from onefold.data.text.windows import gather

Task = Literal["tokens", "small", "jpeg", "raw"]
Pass = Callable[[], Iterable[Any]]  # goes through all batches once
WORKERS, CONTEXT = 2, 1024
ROWS: dict[Task, int] = {"tokens": 32, "small": 256, "jpeg": 64, "raw": 128}
MEAN, STD = np.array([0.49, 0.48, 0.45], np.float32), np.array([0.25, 0.24, 0.26], np.float32)


# --- what one item is, as users of DataLoader write it ---


def open_tokens(folder: Path) -> np.ndarray:
    return np.memmap(folder / "flat.bin", np.uint16, "r")


def window(tokens: np.ndarray, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.from_numpy(tokens[i * CONTEXT : (i + 1) * CONTEXT + 1].astype(np.int64))
    return found[:-1], found[1:]


def open_pixels(side: int, folder: Path) -> np.ndarray:
    return np.memmap(folder / "flat.bin", np.uint8, "r").reshape(-1, side, side, 3)


def small(pictures: np.ndarray, i: int) -> torch.Tensor:
    padded = np.pad(pictures[i], ((4, 4), (4, 4), (0, 0)))
    top, left = np.random.randint(0, 9, 2)
    cut = padded[top : top + 32, left : left + 32]
    cut = cut[:, ::-1] if np.random.rand() < 0.5 else cut
    return torch.from_numpy(((cut.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).copy())


def raw(pictures: np.ndarray, i: int) -> torch.Tensor:
    return torch.from_numpy(np.array(pictures[i]))


def open_files(folder: Path) -> list[Path]:
    return sorted((folder / "files").iterdir())


def cut_at_random(picture: Image.Image) -> torch.Tensor:
    width, height = picture.size
    area = width * height * np.random.uniform(0.08, 1)
    ratio = np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
    wide, tall = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    left, top = np.random.randint(0, width - wide + 1), np.random.randint(0, height - tall + 1)
    cut = picture.crop((left, top, left + wide, top + tall)).resize((128, 128), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(cut))


def jpeg(files: list[Path], i: int) -> torch.Tensor:
    return cut_at_random(Image.open(files[i]).convert("RGB"))


class Items(Dataset):
    """What a DataLoader asks for one item at a time. `open` runs in the worker that needs the file."""

    def __init__(self, folder: Path, count: int, open: Callable[[Path], Any], item: Callable[[Any, int], Any]):
        self.folder, self.count, self.open, self.item, self.file = folder, count, open, item, None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        if self.file is None:
            self.file = self.open(self.folder)
        return self.item(self.file, int(i))


@dataclass(frozen=True)
class Feed:
    """The data of a task, `count` items in a folder of their own, and who reads them."""

    task: Task
    folder: Path
    count: int

    @property
    def rows(self) -> int:
        """Of a batch."""
        return ROWS[self.task]

    def items(self) -> Items:
        opened: dict[Task, Callable[[Path], Any]] = {
            "tokens": open_tokens,
            "small": partial(open_pixels, 32),
            "jpeg": open_files,
            "raw": partial(open_pixels, 128),
        }
        item = {"tokens": window, "small": small, "jpeg": jpeg, "raw": raw}[self.task]
        return Items(self.folder, self.count, opened[self.task], item)

    def dataloader(self) -> Pass:
        """Worker processes, which live as long as what is returned."""
        loader = DataLoader(self.items(), self.rows, shuffle=True, num_workers=WORKERS, persistent_workers=True)
        return lambda: loader

    def onefold(self, threads: int | None = None) -> Pass:
        """threads: of the loader of pictures; None: as many as it takes by itself."""
        records, rows = Records(self.folder / "records"), self.rows
        if self.task == "tokens":
            tokens = records.ragged("tokens")
            plan = partial(plan_rows, tokens.lengths - 1, CONTEXT, rows, 0)
            windows = Loader(plan, partial(gather, tokens=tokens, pad=0), rows)
            return partial(_some, windows, plan(0).batches)
        side = {"small": 32, "jpeg": 128, "raw": 128}[self.task]
        reader = PictureReader(side=side, mean=tuple(MEAN.tolist()), std=tuple(STD.tolist()))
        frame = RandomResizedCrop(side=side) if self.task == "jpeg" else CentreCrop(side=side)
        transforms = (PadCrop().build(), Flip().build()) if self.task == "small" else ()
        make = PictureBatches(records, reader, np.empty(0, np.int64), frame.build(), transforms, 0)
        order = partial(plan_epoch, self.count, rows, "random", 0)
        loader = Loader(order, make, rows, threads=threads or make.threads)
        batches = partial(_some, loader, -(-self.count // rows))
        return (lambda: (batch.pixels() for batch in batches())) if self.task == "small" else batches

    def write(self) -> None:
        """Make the data: for DataLoader numbers in one flat file, or files of their own; for Onefold records."""
        random = np.random.default_rng(0)
        if self.task == "tokens":
            flat = random.integers(0, 50_000, self.count * CONTEXT + 1).astype(np.uint16)
            flat.tofile(self.folder / "flat.bin")
            with RecordsWriter(self.folder / "records", {"tokens": Column("uint16", ragged=True)}) as out:
                for part in np.split(flat[:-1], 100):  # documents of the same length, so that each gives as many
                    out.add(tokens=np.append(part, part[-1:]))
            return
        shape = None if self.task == "jpeg" else {"small": (32, 32, 3), "raw": (128, 128, 3)}[self.task]
        columns = picture_columns("image", shape) | {"label": Column("int32"), "name": Column("text")}
        with RecordsWriter(self.folder / "records", columns) as out:
            if shape:
                pictures = random.integers(0, 256, (self.count, *shape), dtype=np.uint8)
                pictures.tofile(self.folder / "flat.bin")
                for i, picture in enumerate(pictures):
                    out.add(image=picture, label=-1, name=str(i))
                return
            (self.folder / "files").mkdir()
            for i in range(self.count):
                file = self.folder / "files" / f"{i:06}.jpg"
                Image.fromarray(_photograph(random, 256)).save(file, quality=87)
                out.add(**encoded_record("image", [file.read_bytes()], (256, 256, 3)), label=-1, name=file.name)


def clocked(clock: Literal["cpu", "wall"], batches: Pass) -> Callable[[], float]:
    """A function that goes through all batches once and returns the seconds of it; it has done so once before.

    cpu: of all threads and worker processes together. Errors: UserError where psutil, which counts them, is missing.
    """
    read = _processor_seconds() if clock == "cpu" else time.perf_counter

    def run() -> float:
        began, last = read(), None
        for batch in batches():
            last = batch  # held for the length of a step
        del last
        return read() - began

    run()  # starts workers, fills caches
    return run


def _processor_seconds() -> Callable[[], float]:
    try:
        import psutil
    except ImportError:
        raise missing_extra("psutil", "test", "counting the processor seconds of workers") from None

    def read() -> float:
        workers = psutil.Process().children(recursive=True)
        return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)

    return read


def _some(loader: Loader, batches: int) -> Iterator[Any]:
    return (next(loader) for _ in range(batches))


def _photograph(random: np.random.Generator, side: int) -> np.ndarray:
    coarse = Image.fromarray(random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(smooth + random.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
