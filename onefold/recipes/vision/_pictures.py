"""What the recipes of picture models share: small settings, and questions that several of their checks ask."""

import shutil
from collections import defaultdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onefold.core.batch import ImageBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.data.facts import read_contents
from onefold.data.pictures.sources import DIGITS, open_pictures, picture_stamp
from onefold.data.pictures.store import build, is_store
from onefold.data.pictures.transforms import Flip, RandomResizedCrop
from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.convnext import ConvNeXtConfig
from onefold.models.vision.vit import ViTConfig
from onefold.objectives.classification import Classification
from onefold.study.check import whole
from onefold.study.pages.pictures import png
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


def small_vit(image: int, channels: int, width: int = 96, depth: int = 6) -> ViTConfig:
    """A small one: about 4 squares a side up to 8 pixels, 8 above, and the mean of all squares for the classifier.

    Errors: UserError when `image` cannot be cut into so few.
    """
    wanted = image / (4 if image <= 8 else 8)
    patch = min((side for side in range(1, image) if image % side == 0), key=lambda side: abs(side - wanted), default=1)
    if image // patch > 16:
        raise UserError(f"image={image} cannot be cut into about eight squares a side: give a multiple of 8")
    changes: dict[str, Any] = {
        **{"image": image, "patch": patch, "channels": channels, "width": width},
        **{"depth": depth, "pool": "mean", "block.mixer.heads": width // 32, "block.ffn.width": 4 * width},
    }
    return vision_sizes.vit().but(changes)


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
    return [whole(train(run.but({"seed": seed, "out": f"runs/check/{name}/{seed}"}))) for seed in SEEDS]
