"""What the recipes of picture models share: small settings, and questions that several of their checks ask."""

import shutil
from collections import defaultdict
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from onefold.core.batch import ImageBatch
from onefold.core.config import Config
from onefold.core.files import atomic_folder
from onefold.data.facts import read_contents
from onefold.data.picture_sources import DIGITS, open_pictures, picture_stamp
from onefold.data.store import build, is_store
from onefold.data.transforms import Flip, RandomResizedCrop
from onefold.models.convnext import ConvNeXtConfig
from onefold.objectives.classification import Classification
from onefold.study.check import Report
from onefold.study.pictures import png
from onefold.training.estimate import count_flops
from onefold.training.run import Result, Run, train

SEEDS = (0, 1, 2)
HELD_OUT = 40  # pictures of each digit that a check is judged by
CROPS = (RandomResizedCrop(), Flip())  # what nearly every picture of things bears
SIDE = 64  # pixels that a small model sees of anything larger than the digits
FASHION = Path("/usr/share/datasets/fashion-mnist")  # 70,000 grey pictures of clothes (Debian: dataset-fashion-mnist)

TINY_TRAINER: dict[str, Any] = {
    "trainer": {
        "steps": 400,
        "batch": 64,
        "evaluate_every": 100,
        "checkpoint_every": 200,
        "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.0},
    }
}


def real_pictures() -> str:
    """Where a check finds more pictures than the digits: clothes of 28 × 28 pixels (arXiv 1708.07747), if installed."""
    return str(FASHION) if FASHION.is_dir() else DIGITS


def small_side(data: str) -> int:
    return 8 if data == DIGITS else SIDE


def small_data(data: str, image: int) -> dict[str, Any]:
    """Digits are left as they are; others are cropped and mirrored, and stored no larger than that needs."""
    if data == DIGITS:
        return {"side": None, "channels": 1, "augment": []}
    augment = [change.to_dict() for change in CROPS]
    return {"side": image, "channels": 3, "store_side": 2 * image, "augment": augment}


def convnet(image: int, channels: int) -> ConvNeXtConfig:
    """About as many parameters and operations as the small ViT."""
    return ConvNeXtConfig(
        image=image, channels=channels, classes=10, blocks=(3, 3), widths=(64, 128), patch=max(1, image // 8), kernel=3
    )


def some_digits(each: int) -> Path:
    """A folder of the digits by class: `each` of every one to learn from, always the same others to be judged by."""
    folder = Path("runs/check/pictures") / str(each)
    if (folder / "train").is_dir():
        return folder
    by_class: dict[str, list[np.ndarray]] = defaultdict(list)
    for picture in open_pictures(DIGITS):
        by_class[picture.label or ""].append(picture.pixels)
    with atomic_folder(folder) as unfinished:
        for label, images in by_class.items():
            named = chain((("test", i) for i in images[:HELD_OUT]), (("train", i) for i in images[HELD_OUT:][:each]))
            for number, (split, image) in enumerate(named):
                place = unfinished / split / label
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number}.png").write_bytes(png(image))
    return folder


def accuracy(result: Result) -> float:
    """Of the last evaluation."""
    return next(r["held_out"]["accuracy"] for r in reversed(result.log) if "held_out" in r)


def stored(source: str) -> str:
    """The pictures as a store that all runs of a check read; built anew where it is not of this source as it is now."""
    place = Path("runs/check/pictures") / Path(source).name
    if is_store(place) and read_contents(place)["stamps"] != {source: picture_stamp(source)}:
        shutil.rmtree(place)
    if not is_store(place):
        build(source, place)
    return str(place)


@cache
def flops(model: Config) -> float:
    """Operations of a picture in training, forward and backward."""
    pixels = torch.zeros(2, model.channels, model.image, model.image, dtype=torch.uint8)
    batch = ImageBatch(images=pixels, targets=torch.eye(2, model.classes))
    return count_flops(model, Classification().build(), batch)


def seeded(run: Run, name: str) -> list[Result]:
    """The run with each seed; what is finished already is only read."""
    return [train(run.but({"seed": seed, "out": f"runs/check/{name}/{seed}"})) for seed in SEEDS]


def pretrained() -> list[Result]:
    """Masked autoencoders of many digits, which the checks of two recipes begin with."""
    from onefold.recipes import mae

    return seeded(mae.tiny().but({"data.path": str(some_digits(130))}), "mae")


def convolutions_lead_less_with_more_pictures(report: Report) -> None:
    """Error of a small ViT less that of a convnet of its size, learning from few and from all digits."""
    from onefold.recipes import vit

    leads = {}
    for each in (10, 130):
        folder, scores = some_digits(each), {}
        for name, model in (("vit", vit.shape(8, 1)), ("convnet", convnet(8, 1))):
            run = vit.tiny().but({"data.path": str(folder), "model": model.to_dict()})
            scores[name] = [accuracy(result) for result in seeded(run, f"vit/{name}-{each}")]
            report.note(f"held-out accuracy, {name}, {each} pictures of each digit", scores[name])
        leads[each] = [c - v for c, v in zip(scores["convnet"], scores["vit"])]
        report.note(f"the convnet's lead, {each} of each", leads[each])
        report.less(f"held-out error of the ViT, {each} of each, against guessing", 1 - fmean(scores["vit"]), 0.9)
    report.note("the lead shrinks with more pictures", fmean(leads[130]) < fmean(leads[10]))


def pretraining_saves_labels(report: Report) -> None:
    """A ViT that filled in masked digits without labels first, and one from scratch: both learn ten of each digit."""
    from onefold.recipes import vit

    fresh = vit.tiny().but({"data.path": str(some_digits(10))})
    scratch, tuned = [], []
    for before, after in zip(pretrained(), seeded(fresh, "vit/vit-10")):
        seed = before.run.seed
        changes = {"start": str(before.out), "seed": seed, "out": f"runs/check/vit/tuned/{seed}"}
        tuned.append(accuracy(train(fresh.but(changes))))
        scratch.append(accuracy(after))
    report.note("held-out accuracy, 10 labels of each digit, from scratch", scratch)
    report.note("the same after masked pre-training on 130 of each without labels", tuned)
    report.note("pre-training helped", fmean(tuned) > fmean(scratch))
