"""Feeding: Onefold's loader against what is otherwise used, from the same bytes in the same folder, all in page cache.

    python benchmarks/loader.py                          # all four tasks, in CPU seconds
    python benchmarks/loader.py --task jpeg --clock wall --rounds 9
    python benchmarks/loader.py --open 5                 # instead: what opening a store of 5 GB costs

The tasks are those of onefold/recipes/vision/_feeding.py, which the check of ffcv races in small:

    tokens   windows of 1,024 tokens, and what follows each, as int64
    small    32 x 32 pictures: moved by up to 4 pixels, mirrored, normalised to float32
    jpeg     256 x 256 JPEGs: a random part of each, resized to 128 x 128
    raw      128 x 128 pictures as they lie on disk

A round is one pass over the data in shuffled order, in batches, by each contender in turn; workers were started before.
CPU seconds count those of all threads and worker processes: the fewer, the more is left for training. The bare copy is
numpy gathering the same rows from a memory map, which does none of the rest. As writing is faster to memory that is
still in the processor's cache, it is also timed with as many batches held as the loader keeps ready. webdataset, grain,
datasets and MosaicML's streaming take part where they are installed.

--open: shards of 1 GB of encoded pictures of 100 KB, which are one file under several names. In a process of its own
each time: milliseconds and resident memory of opening it, of a first row, and of the sizes of all its pictures, with
the files in the page cache and (where the system lets go of them) not.
"""

import argparse
import ctypes
import io
import json
import mmap
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from race import machine, race
from torch.utils.data import DataLoader

from onefold.data.ahead import AHEAD
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.records import INDEX, Column, RecordsWriter
from onefold.recipes.vision._feeding import (
    CONTEXT,
    WORKERS,
    Feed,
    Pass,
    clocked,
    cut_at_random,
    open_files,
    open_pixels,
    open_tokens,
    small,
)

COUNTS = {"tokens": 40_000, "small": 20_000, "jpeg": 2_000, "raw": 10_000}


def others(feed: Feed) -> dict[str, Pass]:
    """Whatever else is installed."""
    task, path, rows = feed.task, feed.folder, feed.rows
    found: dict[str, Pass] = {}
    if task == "jpeg" and find_spec("webdataset"):
        import webdataset

        tar_files(path)
        shards = webdataset.WebDataset(str(path / "shard-{0..1}.tar"), shardshuffle=2).shuffle(500).map(decoded)
        streamed = webdataset.WebLoader(
            shards.batched(rows), batch_size=None, num_workers=WORKERS, persistent_workers=True
        )
        found[f"webdataset, {WORKERS} workers"] = lambda: streamed
    if find_spec("grain"):
        import grain.python as grain

        source = grain.MapDataset.source(feed.items()).seed(0).shuffle()
        arrays = source.map(lambda x: tuple(t.numpy() for t in x) if isinstance(x, tuple) else x.numpy()).batch(rows)
        found["grain, 2 threads"] = lambda: arrays.to_iter_dataset(grain.ReadOptions(num_threads=2))
    if task == "tokens" and find_spec("datasets"):
        import datasets

        table = np.asarray(open_tokens(path)[: feed.count * CONTEXT]).reshape(-1, CONTEXT).astype(np.int64)
        folder = path / "datasets"
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"tokens": list(table)}).save_to_disk(folder)
        windows = datasets.load_from_disk(folder).with_format("torch")
        fed = DataLoader(windows, rows, shuffle=True, num_workers=WORKERS, persistent_workers=True)
        found[f"datasets, {WORKERS} workers"] = lambda: fed
    if find_spec("streaming"):
        fed_by_streaming = mosaic(feed)
        found[f"streaming, {WORKERS} workers"] = lambda: fed_by_streaming
    return found


def decoded(sample: dict) -> torch.Tensor:
    return cut_at_random(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))


def tar_files(path: Path) -> None:
    for shard in range(WORKERS):
        with tarfile.open(path / f"shard-{shard}.tar", "w") as tar:
            for file in open_files(path)[shard::WORKERS]:
                tar.add(file, file.name)


def mosaic(feed: Feed) -> DataLoader:
    """The same items in MosaicML's shards, which stream from where they lie; a sample is a dict of its columns."""
    from streaming import MDSWriter, StreamingDataset

    folder, items = feed.folder / "mds", feed.items()
    file = items.open(feed.folder)
    with MDSWriter(out=str(folder), columns={"item": "bytes"}) as out:
        for i in range(feed.count):
            if feed.task == "jpeg":
                out.write({"item": file[i].read_bytes()})
            elif feed.task == "tokens":
                out.write({"item": file[i * CONTEXT : (i + 1) * CONTEXT + 1].tobytes()})
            else:
                out.write({"item": file[i].tobytes()})

    class Streamed(StreamingDataset):
        def __getitem__(self, i: int):
            return from_bytes(feed.task, super().__getitem__(i)["item"])

    # Shards are read where they lie: there is nothing to fetch with `remote` None.
    dataset = Streamed(local=str(folder), remote=None, shuffle=True, batch_size=feed.rows)
    return DataLoader(dataset, feed.rows, num_workers=WORKERS, persistent_workers=True)


def from_bytes(task: str, data: bytes):
    """What `Feed.items` makes of an item, from its bytes."""
    if task == "jpeg":
        return decoded({"jpg": data})
    if task == "tokens":
        found = torch.from_numpy(np.frombuffer(data, np.uint16).astype(np.int64))
        return found[:-1], found[1:]
    side = {"small": 32, "raw": 128}[task]
    picture = np.frombuffer(data, np.uint8).reshape(side, side, 3)
    return small(picture[None], 0) if task == "small" else torch.from_numpy(picture.copy())


def bare(feed: Feed, held: int) -> Pass:
    """The same bytes, gathered by numpy, with this many batches in memory at a time."""
    flat = open_pixels(128, feed.folder) if feed.task == "raw" else open_tokens(feed.folder)

    def batches():
        order, kept = np.random.permutation(feed.count), deque(maxlen=held)
        for begin in range(0, feed.count, feed.rows):
            places = order[begin : begin + feed.rows]
            if feed.task == "raw":
                kept.append(flat[places])
            else:
                windows = np.stack([flat[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in places.tolist()])
                kept.append((windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)))
            yield kept[-1]

    return batches


def write_large(folder: Path, gigabytes: int) -> None:
    """A store of that size, on the disk only once."""
    columns = picture_columns("image") | {"label": Column("int32"), "name": Column("text")}
    picture = np.random.default_rng(0).bytes(100_000)
    with RecordsWriter(folder, columns) as out:
        for i in range(10_000):
            out.add(**encoded_record("image", [picture], (256, 256, 3)), label=i % 10, name=f"{i}.jpg")
    index = json.loads((folder / INDEX).read_text())
    [shard, *_] = index["shards"]
    index["shards"] = [shard | {"file": f"{number:05}.arrow"} for number in range(gigabytes)]
    for other in index["shards"][1:]:
        (folder / other["file"]).unlink(missing_ok=True)
        os.link(folder / shard["file"], folder / other["file"])
    (folder / INDEX).write_text(json.dumps(index))


OPENING = """
import sys, time
import psutil
from onefold.data.records import Records

def step(name, work):
    before, began = process.memory_info().rss, time.perf_counter()
    found = work()
    milliseconds = 1e3 * (time.perf_counter() - began)
    print(f"  {name:<24}{milliseconds:9.1f} ms {(process.memory_info().rss - before) / 1e6:9.1f} MB")
    return found

process = psutil.Process()
records = step("open", lambda: Records(sys.argv[1]))
step("open again", lambda: Records(sys.argv[1]))
step("a first row", lambda: len(records.pictures().encoded(len(records) // 2)))
step("sizes of all pictures", lambda: records.pictures().sizes)
"""


def opening(gigabytes: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_large(Path(folder), gigabytes)
        print(f"{machine()}; a store of {gigabytes} GB")
        for number in range(rounds):
            for cached in (True, False):
                if not cached and not let_go(Path(folder)):
                    continue
                print(f"round {number}, files {'in' if cached else 'not in'} the page cache")
                subprocess.run([sys.executable, "-c", OPENING, folder], check=True)


def let_go(folder: Path) -> bool:
    """Ask the system to drop these files from its page cache; whether it did (on a tmpfs, which lies in it, never)."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return all(resident(path) < 0.01 for path in folder.iterdir() if path.stat().st_size > mmap.PAGESIZE)


def resident(file: Path) -> float:
    """The share of a file's pages that lie in memory (mincore(2))."""
    content = np.memmap(file, np.uint8, "r")
    found = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
    address, length = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content))
    if ctypes.CDLL(None).mincore(address, length, ctypes.c_void_p(found.ctypes.data)):
        return 1.0
    return float((found & 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(COUNTS), action="append")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of our loader of pictures; else as many as it takes by itself")
    parser.add_argument("--open", type=int, metavar="GB", help="time opening a store of this size, and nothing else")
    options = parser.parse_args()
    if options.open:
        opening(options.open, options.rounds)
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # of what is computed outside of loaders
    print(f"{machine()}, {os.cpu_count()} cores; {options.clock} seconds of a pass")
    for task in options.task or COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            feed = Feed(task, Path(folder), COUNTS[task])
            feed.write()
            baseline = f"DataLoader, {WORKERS} workers"
            contenders = {baseline: feed.dataloader(), **others(feed), "onefold": feed.onefold(options.threads)}
            if task in ("tokens", "raw"):
                contenders |= {f"a bare copy, {n} held": bare(feed, n) for n in (1, AHEAD + 1)}
            print(f"\n{task}: {feed.count:,} items in batches of {feed.rows}")
            timed = {name: clocked(options.clock, batches) for name, batches in contenders.items()}
            race(timed, options.rounds, baseline)


if __name__ == "__main__":
    main()
