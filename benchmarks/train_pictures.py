"""A small convnet on Fashion-MNIST, end to end: seconds until 90% of the test pictures are named, by who feeds it.

    apt install dataset-fashion-mnist                      # 31 MB: 60,000 + 10,000 pictures in IDX files
    python benchmarks/train_pictures.py
    python benchmarks/train_pictures.py --data photos/ --side 32 --target 0.8 --rounds 5

The same model, optimizer, batches and changes (half of them mirrored), fed once by Onefold's loader and
once by torch's DataLoader with 2 workers over the pixels in memory, in turn. Seconds are those of training, evaluations
left out; beside them stands the share that passed waiting for a batch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from race import machine
from torch.utils.data import DataLoader, Dataset

from onefold.core.batch import ImageBatch
from onefold.data.pictures.images import ImageData, ImageDataset
from onefold.data.pictures.transforms import Flip
from onefold.infer.classify import predict
from onefold.models.transformer import count_parameters
from onefold.models.vision.residual import ResidualConfig
from onefold.objectives.classification import Classification
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear

FASHION = "/usr/share/datasets/fashion-mnist"
ROWS = 128
EVERY = 100  # steps from one look at the test pictures to the next


class Items(Dataset):
    """The same pictures and changes, one at a time, as a DataLoader's users write them."""

    def __init__(self, dataset: ImageDataset):
        batches = list(dataset.evaluation("train", 1024))
        self.images = np.concatenate([b.images.numpy().copy() for b in batches])
        self.targets = np.concatenate([b.targets.numpy().copy() for b in batches])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        image = self.images[row]
        return np.ascontiguousarray(image[:, :, ::-1] if np.random.rand() < 0.5 else image), self.targets[row]


def by_onefold(dataset: ImageDataset, seed: int) -> Iterator[ImageBatch]:
    with dataset.loader("train", ROWS, seed) as loader:
        yield from loader


def by_dataloader(dataset: ImageDataset, seed: int) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        Items(dataset), ROWS, shuffle=True, drop_last=True, num_workers=2, generator=generator, persistent_workers=True
    )
    while True:
        for images, targets in loader:
            yield ImageBatch(images=images, targets=targets, mean=dataset.mean, std=dataset.std)


def train(
    feed: Iterator[ImageBatch], dataset: ImageDataset, config: ResidualConfig, target: float, steps: int, seed: int
) -> tuple[bool, int, float, float, float]:
    """(whether `target` was reached, steps, seconds, share of them spent waiting, accuracy in the end)"""
    torch.manual_seed(seed)
    model, objective, schedule = config.build(), Classification().build(), Linear(warmup=0.1)
    optimizer = AdamWConfig(lr=4e-3, weight_decay=0.05).build(model)
    next(feed)  # the workers are there
    seconds = waited = accuracy = 0.0
    for step in range(steps):
        began = time.perf_counter()
        batch = next(feed)
        waited += time.perf_counter() - began
        optimizer.schedule(schedule.multiplier(step, steps))
        term = objective(model, batch, step).terms["ce"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
        seconds += time.perf_counter() - began
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            accuracy = predict(model, dataset.evaluation("held_out", 500)).accuracy
            if accuracy >= target:
                break
    return accuracy >= target, step + 1, seconds, waited / seconds, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=FASHION)
    parser.add_argument("--side", type=int, default=None, help="pixels; default: as the pictures are")
    parser.add_argument("--target", type=float, default=0.9, help="share of the test pictures")
    parser.add_argument("--steps", type=int, default=1200, help="of the whole schedule")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    data = ImageData(path=options.data, side=options.side, augment=(Flip(),))
    with tempfile.TemporaryDirectory() as folder:
        dataset = data.prepare(Path(folder))
        reader = dataset.processor
        config = ResidualConfig(
            image=reader.side, channels=reader.channels, classes=len(dataset.classes),
            blocks=(1, 1, 1), widths=(32, 64, 128), inner=0.5, stem="patch", stem_width=None, stride=2,
        )  # fmt: skip
        print(f"{count_parameters(config):,} parameters, {dataset.size('train'):,} pictures to learn from")
        found: dict[str, list[float]] = {}
        for seed in range(options.rounds):
            for name, feed in (("onefold", by_onefold), ("DataLoader", by_dataloader)):
                reached, steps, seconds, waiting, accuracy = train(
                    feed(dataset, seed), dataset, config, options.target, options.steps, seed
                )
                told = f"{accuracy:.1%} after {steps} steps, {seconds:.1f} s, {1e3 * seconds / steps:.1f} ms a step"
                print(f"seed {seed}, {name}: {told}, waiting for data {waiting:.1%}", flush=True)
                if reached:
                    found.setdefault(name, []).append(seconds)
        for name, times in found.items():
            spread = f"median {statistics.median(times):.1f} s ({min(times):.1f}-{max(times):.1f})"
            print(f"{name}: {options.target:.0%} in {len(times)} of {options.rounds} rounds, {spread}")


if __name__ == "__main__":
    main()
