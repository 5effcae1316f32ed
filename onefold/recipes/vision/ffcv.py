"""FFCV (Leclerc et al. 2023, "FFCV: Accelerating Training by Removing Data Bottlenecks", arXiv 2306.12517).

Claim: training often waits for its pictures. Stored in pages that are mapped into memory, decoded and augmented by
threads a batch ahead, and read in an order that is random among pages, they keep the fastest machine busy.

`recipe` trains the ResNet-50 that the authors show it with. The settings are those of the configs that they published
with the paper (rn50_16_epochs to rn50_88_epochs of libffcv/ffcv-imagenet): 512 pictures on each of 8 GPUs, learning
rate 1.7 reached after two epochs and brought down to 0 in a straight line, weight decay 1e-4 but for norms, label
smoothing 0.1.

Deviations: pictures have 176 pixels from the first epoch to the last and are judged at 224 (theirs grow from 160 to
192 in the last quarter and are judged at 256); strided convolutions are not blurred (BlurPool); an evaluation reads a
picture once, not also mirrored. Each of these should cost some accuracy, so do not expect theirs. Besides, the
classifier's bias does not decay; pictures are kept as JPEG, shorter sides up to 375 pixels (theirs: the longer ones up
to 500, half of them raw); and batch norms see as many pictures as a device takes at a time, which need not be 512. The
data path is NumPy on whole batches instead of compiled code.
"""

import gc
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np
import torch

from onefold.core.errors import missing_extra
from onefold.data.ahead import NAME
from onefold.data.order import Kind, order
from onefold.data.pictures.images import ImageData, ImageDataset
from onefold.data.pictures.transforms import Flip, MixupOrCutMix, RandAugment, RandomResizedCrop
from onefold.models.transformer import count_parameters
from onefold.models.vision.resnet import ResNetConfig
from onefold.objectives.classification import Classification
from onefold.recipes.vision import _feeding as feeding
from onefold.recipes.vision import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optimizers.optim import SGDConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

IMAGENET, BATCH = 1_281_167, 4096
RESNET_50 = 25_557_032  # parameters
ROUNDS = 3
COUNTS: dict[feeding.Task, int] = {"small": 10_000, "tokens": 20_000, "jpeg": 1_000}  # items of a round


def recipe(data: str = "digits", epochs: int = 88, image: int = 176) -> Run:
    """`epochs` of as many pictures as ImageNet has (the paper: 16 to 88), cropped to `image` pixels a side."""
    judged = round(image * 224 / 176)
    return Run(
        data=ImageData(
            path=data,
            side=judged,
            share=0.875,
            channels=3,
            augment=(RandomResizedCrop(side=image), Flip()),
            store_side=375,
        ),
        model=ResNetConfig(image=judged),
        objective=Classification(smoothing=0.1),
        optimizer=SGDConfig(lr=1.7, momentum=0.9, nesterov=False, weight_decay=1e-4),
        trainer=TrainerConfig(
            steps=epochs * -(-IMAGENET // BATCH),
            batch=BATCH,
            clip=None,
            schedule=Linear(warmup=2 / epochs, final=0.0),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/ffcv",
    )


def tiny(data: str = "digits", image: int | None = None) -> Run:
    """Two bottlenecks on pictures of 8 or 64 pixels: a minute or two on two cores."""
    image = image or pictures.small_side(data)
    model = {"image": image, "channels": 1 if data == "digits" else 3, "classes": 10}
    settings: dict[str, Any] = {
        "data": {"share": 1.0, **pictures.small_data(data, image)},
        "model": {**model, "blocks": (1, 1), "widths": (32, 64), "stem": 32},
        "optimizer.lr": 0.2,
        **pictures.TINY_TRAINER,
    }
    return recipe(data).but(settings).but({"trainer.schedule": {"kind": "linear", "warmup": 0.1, "final": 0.0}})


def check(report: Report) -> None:
    """Orders, shares of processes, resuming, threads and files behind an epoch that was broken off; then the speed."""
    report.equal("parameters, ResNet-50", count_parameters(ResNetConfig()), RESNET_50)
    orders_are_random_and_repeatable(report)
    with tempfile.TemporaryDirectory() as folder:
        processes_share_an_epoch(report, Path(folder))
        nothing_stays_behind(report, Path(folder))
        positions_are_exact(report, Path(folder))
        threads_do_not_matter(report, Path(folder))
        speeds(report, Path(folder))
    results = pictures.seeded(tiny(), "ffcv")
    report.less("held-out error on the digits", [1 - pictures.accuracy(r) for r in results], 0.1)
    waiting = [fmean(record["waiting"] for record in r.log[10:] if "waiting" in record) for r in results]
    report.note("share of a small training's time spent waiting for data", waiting)
    report.published("minutes to 75% on ImageNet, ResNet-50 on one machine", 20)


def orders_are_random_and_repeatable(report: Report) -> None:
    """Every row once; the same for the same seed and epoch; another one in the next epoch, but for sequential."""
    count, few = 10_007, dict(count=10_007, page_rows=16)
    kinds: tuple[Kind, ...] = get_args(Kind)
    for kind in kinds:
        found = {
            (seed, epoch): order(kind=kind, seed=seed, epoch=epoch, **few) for seed in (0, 1, 2) for epoch in (0, 1)
        }
        whole = all(np.array_equal(np.sort(rows), np.arange(count)) for rows in found.values())
        report.equal(f"order {kind}: every row once", whole, True)
        again = all(np.array_equal(rows, order(kind=kind, seed=s, epoch=e, **few)) for (s, e), rows in found.items())
        report.equal(f"order {kind}: the same for the same seed and epoch", again, True)
        different = len({rows.tobytes() for rows in found.values()})
        report.equal(
            f"order {kind}: different orders of 3 seeds and 2 epochs", different, 1 if kind == "sequential" else 6
        )


def processes_share_an_epoch(report: Report, folder: Path) -> None:
    """Every picture once over all processes (but those that fill the last batch), in as many batches for each."""
    data = _augmented(folder)
    count, rows = data.size("train"), 48
    for world in (2, 3, 4):
        shares = []
        for rank in range(world):
            with data.loader("train", rows, 0, rank, world) as loader:
                shares.append([batch.rows_of.tolist() for batch in _epoch(loader)])
        seen = list(chain.from_iterable(chain.from_iterable(shares)))
        report.equal(f"{world} processes: batches of each", {len(share) for share in shares}, {-(-count // rows)})
        report.equal(f"{world} processes: pictures seen", len(set(seen)), count)
        report.equal(f"{world} processes: pictures seen twice", len(seen) - count, -count % rows)


def nothing_stays_behind(report: Report, folder: Path) -> None:
    """Whoever walks away in the middle of an epoch leaves no thread and no open file of the store."""
    data = _augmented(folder)
    loader = data.loader("train", 32, 0)
    for _ in range(3):
        next(loader)
    report.equal("in an epoch: loader threads, and files of the store, are there", all(_held(folder)), True)
    del loader, data
    gc.collect()
    report.equal("broken off: loader threads, files of the store", _held(folder), (0, 0))


def positions_are_exact(report: Report, folder: Path, seeds: Sequence[int] = pictures.SEEDS) -> None:
    """Going on from a saved position, with any number of processes: the bits of an epoch that nobody broke off."""
    data, rows, differ = _augmented(folder), 48, 0
    for seed in seeds:
        with data.loader("train", rows, seed) as whole:
            wanted = [_bits(next(whole)) for _ in range(2 * data.size("train") // rows)]
        for after in (1, 7, len(wanted) // 2 + 1):  # the last one in the second epoch
            with data.loader("train", rows, seed) as broken:
                for _ in range(after):
                    next(broken)
                position = broken.state()
            for world in (1, 2):
                loaders = [data.loader("train", rows, seed, rank, world, position) for rank in range(world)]
                for expected in wanted[after : after + 4]:
                    found = [_bits(next(loader)) for loader in loaders]
                    differ += not all(torch.equal(torch.cat(parts), b) for *parts, b in zip(*found, expected))
                for loader in loaders:
                    loader.close()
    report.equal(f"batches after going on, of {len(seeds)} seeds, that differ by a bit", differ, 0)


def threads_do_not_matter(report: Report, folder: Path) -> None:
    """However many threads make the batches, the same seed gives the same pixels."""
    feed = feeding.Feed("small", _made(folder / "threads"), 1000)
    feed.write()
    made = [torch.cat(list(feed.onefold(threads)())) for threads in (1, 2, 5)]
    same = [torch.equal(pixels, made[0]) for pixels in made]
    report.equal("1, 2 and 5 threads make the same pixels", same, [True, True, True])


def speeds(report: Report, folder: Path, counts: dict[feeding.Task, int] = COUNTS) -> None:
    """Items for each second of all processors' time, against torch's DataLoader on the same pictures and tokens."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of what is computed outside of loaders
    try:
        for task, count in counts.items():
            if task == "jpeg" and not find_spec("simplejpeg"):
                continue
            feed = feeding.Feed(task, _made(folder / task), count)
            feed.write()
            theirs, ours = (feeding.clocked("cpu", batches) for batches in (feed.dataloader(), feed.onefold()))
            rounds = [(theirs(), ours()) for _ in range(ROUNDS)]
            for name, seconds in zip((f"DataLoader, {feeding.WORKERS} workers", "Onefold"), zip(*rounds)):
                report.note(f"{task}: items per CPU second, {name}", [count / s for s in seconds])
            report.note(f"{task}: Onefold's, as a multiple of the DataLoader's", [a / b for a, b in rounds])
            del theirs, ours
    finally:
        torch.set_num_threads(before)


def _augmented(folder: Path) -> ImageDataset:
    """The digits, changed at random in every way that draws numbers."""
    augment = (RandomResizedCrop(), Flip(), RandAugment(), MixupOrCutMix())
    return ImageData(augment=augment).prepare(folder / "digits")


def _epoch(loader: Any) -> Iterator[Any]:
    epoch = loader.state()["epoch"]
    while loader.state()["epoch"] == epoch:
        yield next(loader)


def _bits(batch: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.clone() for tensor in (batch.images, batch.targets, batch.rows_of))


def _held(folder: Path) -> tuple[int, int]:
    """(threads of loaders, files below a folder that this process has open or mapped into its memory)."""
    try:
        import psutil
    except ImportError:
        raise missing_extra("psutil", "test", "looking for open files") from None
    process = psutil.Process()
    mapped = process.memory_maps() if hasattr(process, "memory_maps") else []
    files = [file.path for file in (*process.open_files(), *mapped) if file.path.startswith(str(folder.resolve()))]
    return sum(thread.name == NAME for thread in threading.enumerate()), len(files)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
