"""Feeding: Onefold's loader against what is otherwise used, from the same bytes in the same folder, all in page cache.

    python benchmarks/loader.py                          # all four tasks, in CPU seconds
    python benchmarks/loader.py --task jpeg --clock wall --rounds 9

    tokens   windows of 1,024 tokens, and what follows each, as int64
    small    32 x 32 pictures: moved by up to 4 pixels, mirrored, normalised to float32
    jpeg     256 x 256 JPEGs: a random part of each, resized to 128 x 128
    raw      128 x 128 pictures as they lie on disk

A round is one pass over the data in shuffled order, in batches, by each contender in turn; workers were started before.
CPU seconds count those of all threads and worker processes: the fewer, the more is left for training. The bare copy is
numpy gathering the same rows from a memory map, which does none of the rest. As writing is faster to memory that is
still in the processor's cache, it is also timed with as many batches held as the loader keeps ready. webdataset and
grain take part where they are installed.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from race import machine, race
from torch.utils.data import DataLoader, Dataset

from onefold.data.ahead import AHEAD
from onefold.data.loader import Loader, gather
from onefold.data.order import plan_epoch
from onefold.data.picture_batches import PictureBatches
from onefold.data.picture_reader import PictureReader
from onefold.data.pictures import encoded_record, picture_columns
from onefold.data.plan import plan_rows
from onefold.data.records import Column, Records, RecordsWriter
from onefold.data.transforms import CentreCrop, Flip, PadCrop, RandomResizedCrop

WORKERS, CONTEXT = 2, 1024
COUNTS = {"tokens": 40_000, "small": 20_000, "jpeg": 2_000, "raw": 10_000}
ROWS = {"tokens": 32, "small": 256, "jpeg": 64, "raw": 128}
MEAN, STD = np.float32([0.49, 0.48, 0.45]), np.float32([0.25, 0.24, 0.26])
Contender = Callable[[], float]


class Items(Dataset):
    """What a DataLoader or grain asks for one item at a time. `open` runs in the worker that needs the file."""

    def __init__(self, path: Path, count: int, open: Callable[[Path], object], item: Callable[[object, int], object]):
        self.path, self.count, self.open, self.item, self.file = path, count, open, item, None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        if self.file is None:
            self.file = self.open(self.path)
        return self.item(self.file, int(i))


# --- what one item is, as users of these libraries write it ---


def open_tokens(path: Path) -> np.ndarray:
    return np.memmap(path / "flat.bin", np.uint16, "r")


def window(tokens: np.ndarray, i: int):
    found = torch.from_numpy(tokens[i * CONTEXT : (i + 1) * CONTEXT + 1].astype(np.int64))
    return found[:-1], found[1:]


def open_pixels(side: int, path: Path) -> np.ndarray:
    return np.memmap(path / "flat.bin", np.uint8, "r").reshape(-1, side, side, 3)


def small(pictures: np.ndarray, i: int) -> torch.Tensor:
    padded = np.pad(pictures[i], ((4, 4), (4, 4), (0, 0)))
    top, left = np.random.randint(0, 9, 2)
    cut = padded[top : top + 32, left : left + 32]
    cut = cut[:, ::-1] if np.random.rand() < 0.5 else cut
    return torch.from_numpy(((cut.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).copy())


def raw(pictures: np.ndarray, i: int) -> torch.Tensor:
    return torch.from_numpy(np.array(pictures[i]))


def open_files(path: Path) -> list[Path]:
    return sorted((path / "files").iterdir())


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


def decoded(sample: dict) -> torch.Tensor:
    return cut_at_random(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))


# --- contenders: one pass each, in seconds ---


def clocked(clock: str, batches: Callable[[], Iterable]) -> Contender:
    """A function that goes through `batches` once and returns the seconds of it."""

    def processor_seconds() -> float:
        workers = psutil.Process().children(recursive=True)
        return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)

    read = processor_seconds if clock == "cpu" else time.perf_counter

    def run() -> float:
        began, last = read(), None
        for batch in batches():
            last = batch  # held for the length of a step
        del last
        return read() - began

    run()  # starts workers, fills caches
    return run


def theirs(task: str, path: Path, options: argparse.Namespace) -> dict[str, Callable[[], Iterable]]:
    side = {"small": 32, "raw": 128}.get(task, 0)
    opened = {"tokens": open_tokens, "jpeg": open_files}.get(task, partial(open_pixels, side))
    item = {"tokens": window, "small": small, "jpeg": jpeg, "raw": raw}[task]
    items, rows = Items(path, COUNTS[task], opened, item), ROWS[task]
    loader = DataLoader(items, rows, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    found: dict[str, Callable[[], Iterable]] = {f"DataLoader, {WORKERS} workers": lambda: loader}
    if task == "jpeg" and find_spec("webdataset"):
        import webdataset

        shards = webdataset.WebDataset(str(path / "shard-{0..1}.tar"), shardshuffle=2).shuffle(500).map(decoded)
        streamed = webdataset.WebLoader(
            shards.batched(rows), batch_size=None, num_workers=WORKERS, persistent_workers=True
        )
        found[f"webdataset, {WORKERS} workers"] = lambda: streamed
    if find_spec("grain"):
        import grain.python as grain

        source = grain.MapDataset.source(items).seed(0).shuffle()
        arrays = source.map(lambda x: tuple(t.numpy() for t in x) if isinstance(x, tuple) else x.numpy()).batch(rows)
        found["grain, 2 threads"] = lambda: arrays.to_iter_dataset(grain.ReadOptions(num_threads=2))
    if task == "tokens" and find_spec("datasets"):
        import datasets

        table = np.asarray(open_tokens(path)[: COUNTS[task] * CONTEXT]).reshape(-1, CONTEXT).astype(np.int64)
        folder = path / "datasets"
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"tokens": list(table)}).save_to_disk(folder)
        windows = datasets.load_from_disk(folder).with_format("torch")
        fed = DataLoader(windows, rows, shuffle=True, num_workers=WORKERS, persistent_workers=True)
        found[f"datasets, {WORKERS} workers"] = lambda: fed
    return found


def bare(task: str, path: Path, held: int) -> Callable[[], Iterable]:
    """The same bytes, gathered by numpy, with this many batches in memory at a time."""
    rows, count = ROWS[task], COUNTS[task]
    flat = open_pixels(128, path) if task == "raw" else open_tokens(path)

    def batches():
        order, kept = np.random.permutation(count), deque(maxlen=held)
        for begin in range(0, count, rows):
            places = order[begin : begin + rows]
            if task == "raw":
                kept.append(flat[places])
            else:
                windows = np.stack([flat[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in places.tolist()])
                kept.append((windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)))
            yield kept[-1]

    return batches


def ours(task: str, path: Path, options: argparse.Namespace) -> Callable[[], Iterable]:
    rows, count = ROWS[task], COUNTS[task]
    records = Records(path / "records")
    if task == "tokens":
        tokens = records.ragged("tokens")
        plan = partial(plan_rows, tokens.lengths - 1, CONTEXT, rows, 0)
        loader, total = Loader(plan, partial(gather, tokens=tokens, pad=0), rows), plan(0).batches
        return lambda: (next(loader) for _ in range(total))
    side = {"small": 32, "jpeg": 128, "raw": 128}[task]
    reader = PictureReader(side=side, mean=tuple(MEAN.tolist()), std=tuple(STD.tolist()))
    frame = RandomResizedCrop(side=side) if task == "jpeg" else CentreCrop(side=side)
    transforms = (PadCrop().build(), Flip().build()) if task == "small" else ()
    make = PictureBatches(records, reader, np.empty(0, np.int64), frame.build(), transforms, 0)
    threads = options.threads or make.threads
    loader = Loader(lambda epoch: plan_epoch(count, rows, "random", 0, epoch), make, rows, threads=threads)
    total = -(-count // rows)
    if task == "small":
        return lambda: (next(loader).pixels() for _ in range(total))
    return lambda: (next(loader) for _ in range(total))


# --- the data: random, but compressible as photographs are ---


def photograph(random: np.random.Generator, side: int) -> np.ndarray:
    coarse = Image.fromarray(random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(smooth + random.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def write(task: str, path: Path) -> None:
    random, count = np.random.default_rng(0), COUNTS[task]
    if task == "tokens":
        flat = random.integers(0, 50_000, count * CONTEXT + 1).astype(np.uint16)
        flat.tofile(path / "flat.bin")
        documents = 100  # of the same length, so that each gives as many windows
        with RecordsWriter(path / "records", {"tokens": Column("uint16", ragged=True)}) as out:
            for part in np.split(flat[:-1], documents):
                out.add(tokens=np.append(part, part[-1:]))
        return
    shape = None if task == "jpeg" else {"small": (32, 32, 3), "raw": (128, 128, 3)}[task]
    columns = picture_columns("image", shape) | {"label": Column("int32"), "name": Column("text")}
    with RecordsWriter(path / "records", columns) as out:
        if shape:
            pictures = random.integers(0, 256, (count, *shape), dtype=np.uint8)
            pictures.tofile(path / "flat.bin")
            for i, picture in enumerate(pictures):
                out.add(image=picture, label=-1, name=str(i))
            return
        (path / "files").mkdir()
        for i in range(count):
            file = path / "files" / f"{i:06}.jpg"
            Image.fromarray(photograph(random, 256)).save(file, quality=87)
            out.add(**encoded_record("image", [file.read_bytes()], (256, 256, 3)), label=-1, name=file.name)
    for shard in range(WORKERS):
        with tarfile.open(path / f"shard-{shard}.tar", "w") as tar:
            for file in open_files(path)[shard::WORKERS]:
                tar.add(file, file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(COUNTS), action="append")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of our loader of pictures; else as many as it takes by itself")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # of what is computed outside of loaders
    print(f"{machine()}, {os.cpu_count()} cores; {options.clock} seconds of a pass")
    for task in options.task or COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            write(task, path)
            contenders = {**theirs(task, path, options), "onefold": ours(task, path, options)}
            if task in ("tokens", "raw"):
                contenders |= {f"a bare copy, {n} held": bare(task, path, n) for n in (1, AHEAD + 1)}
            print(f"\n{task}: {COUNTS[task]:,} items in batches of {ROWS[task]}")
            timed = {name: clocked(options.clock, batches) for name, batches in contenders.items()}
            race(timed, options.rounds, f"DataLoader, {WORKERS} workers")


if __name__ == "__main__":
    main()
