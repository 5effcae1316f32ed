"""NFNet (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", arXiv 2102.06171).

Claim: a residual network without normalisation trains at large batches and learning rates when the gradient of each
unit is clipped relative to the size of its weights; scaled (Smith et al. 2023, 2310.16764), such convnets match ViTs
that were trained with as much compute.

Deviations: RandAugment goes no further than magnitude 10, where the paper has 15 from F3 on; evaluation is at the side
of training, where the paper's is larger. The learning rate is 0.1 for each 256 pictures of a batch.
"""

from math import inf
from typing import Any

from onefold.core.config import Config
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.transforms import Flip, MixupOrCutMix, RandAugment, RandomResizedCrop
from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.nfnet import NFNetConfig
from onefold.models.vision.vit import ViTConfig
from onefold.objectives.classification import Classification
from onefold.recipes.vision import _pictures as pictures
from onefold.recipes.vision import vit
from onefold.study.check import Report
from onefold.study.scaling import Point, fit, power_of_ten, scaling_chart
from onefold.training.optimizers.optim import SGDConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Result, Run
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "digits", size: str = "f0", image: int | None = None) -> Run:
    """Sizes: f0 … f6. 360 epochs of ImageNet, 5 of them warm-up."""
    model = vision_sizes.nfnet(size, image)
    augment = (
        RandomResizedCrop(),
        Flip(),
        RandAugment(operations=4, magnitude=5.0 if size == "f0" else 10.0),
        MixupOrCutMix(mixup=0.2),
    )
    return Run(
        data=ImageData(path=data, side=model.image, channels=3, augment=augment),
        model=model,
        objective=Classification(smoothing=0.1),
        optimizer=SGDConfig(lr=1.6, weight_decay=2e-5, adaptive_clip=0.01, ema=0.99999),
        trainer=TrainerConfig(
            steps=112_500,
            batch=4096,
            clip=None,
            schedule=Cosine(warmup=1_560, final=0.0),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/nfnet",
    )


def tiny(data: str = "digits", image: int | None = None) -> Run:
    """Two stages on pictures of 32 or 64 pixels: a few minutes on two cores."""
    side = image or (32 if data == "digits" else pictures.SIDE)
    channels = 1 if data == "digits" else 3
    shape = {"image": side, "channels": channels, "blocks": (1, 2), "widths": (64, 128), "stem": 32, "group": 16}
    return recipe(data).but(
        {
            "data": pictures.small_data(data, side) | {"side": side},
            "model": {**shape, "dropout": 0.0, "drop_path": 0.0},
            "optimizer": {"lr": 0.1, "ema": None},
            **pictures.TINY_TRAINER,
        }
    )


SIDE = 28  # pixels of the pictures that a check is about


def small(width: int, stem: int) -> NFNetConfig:
    """Two blocks, on grey pictures."""
    shape: dict[str, Any] = {"blocks": (1, 1), "widths": (width, 2 * width), "stem": stem, "group": width // 2}
    return NFNetConfig(image=SIDE, channels=1, classes=10, **shape)


def small_vit(width: int, depth: int) -> ViTConfig:
    """Sixteen squares: of the same compute, those of four pixels learn less."""
    return pictures.small_vit(SIDE, 1, width, depth).but({"patch": SIDE // 4, "classes": 10})


# Models for four budgets, as large as leaves both families about as many pictures to see, with one of two to four
# learning rates that did well with one seed at the second budget or above. The paper, too, clips less at small batches.
BUDGETS = (1.25e10, 5e10, 2e11, 8e11)  # FLOPs of a training, forward and backward
Sized = tuple[NFNetConfig | ViTConfig, float]
FAMILIES: dict[str, tuple[Run, dict[str, Any], list[Sized]]] = {
    "NFNet": (
        recipe(),
        {"adaptive_clip": 0.08, "ema": None},
        [(small(16, 8), 0.4), (small(24, 16), 0.4), (small(32, 16), 0.4), (small(48, 24), 0.4)],
    ),
    "ViT": (
        vit.recipe(),
        {"weight_decay": 0.05},
        [(small_vit(32, 1), 1e-2), (small_vit(32, 2), 1e-2), (small_vit(64, 1), 5e-3), (small_vit(64, 2), 5e-3)],
    ),
}


def check(report: Report) -> None:
    """Clipping keeps large batches and learning rates alive; loss falls with compute, in a ViT as in an NFNet."""
    data = {"path": pictures.stored(pictures.real_pictures()), "side": SIDE, "channels": 1, "augment": []}
    clipping(report, data)
    scaling(report, data)


def clipping(report: Report, data: dict[str, Any]) -> None:
    """As many pictures in a batch eight times as large, the learning rate raised with it, and then further."""
    for batch, lr in ((64, 0.05), (512, 0.4), (512, 1.6)):
        for clip in (None, 0.01):
            optimizer = {"lr": lr, "adaptive_clip": clip, "ema": None}
            run = short(recipe(), small(24, 16), optimizer, data, 40 * 512 // batch, batch)
            found = pictures.seeded(run, f"nfnet/{'clipped' if clip else 'plain'}-{batch}-{lr}")
            errors = [1 - pictures.accuracy(result) for result in found]
            what = f"held-out error at batch {batch}, learning rate {lr}, {'clipped' if clip else 'not clipped'}"
            if clip and batch > 64:
                report.less(f"{what}, against guessing's 0.9", errors, 0.6)
            else:
                report.note(what, errors)


def scaling(report: Report, data: dict[str, Any]) -> None:
    """Held-out loss against compute, four sizes of each family."""
    series: dict[str, list[Point]] = {}
    for family, (base, optimizer, models) in FAMILIES.items():
        losses = []
        series[family] = []
        for budget, (model, lr) in zip(BUDGETS, models):
            each = pictures.flops(model)
            steps = round(budget / each / 32)
            run = short(base, model, optimizer | {"lr": lr}, data, steps, 32)
            found = pictures.seeded(run, f"nfnet/scaling/{family.lower()}-{budget:.3g}")
            losses.append([held_out_loss(result) for result in found])
            series[family] += [(steps * 32 * each, loss) for loss in losses[-1]]
            shown = f"{power_of_ten(budget)} FLOPs, {steps * 32:,} pictures"
            report.note(f"held-out loss, {family}, {shown}", losses[-1])
        report.less(f"held-out loss, {family}, at the most compute, against the least", losses[-1], losses[0])
    for family, points in series.items():
        law = fit(points)
        report.note(
            f"exponent of loss over compute, {family}",
            f"{-law.exponent:.3f} (95%: {-law.high:.3f} to {-law.low:.3f})",
        )
    nfnet, transformer = (fit(points).loss(BUDGETS[-1]) for points in series.values())
    report.note("loss of the NFNet over that of the ViT, at the most compute, by the fits", float(nfnet / transformer))
    report.published("ImageNet top-1 of the best NFNet, level with ViTs of its compute", "90.4%")
    report.chart("Held-out loss against training compute", scaling_chart(series))


def short(base: Run, model: Config, optimizer: dict[str, Any], data: dict[str, Any], steps: int, batch: int) -> Run:
    """A training that is judged once, at its end, by 4,096 pictures: fewer where a batch does not fit at once."""
    trainer = {
        **{"steps": steps, "batch": batch, "checkpoint_every": steps},
        **{"evaluate_every": None, "evaluate_batches": 4096 // batch},
        "skip": {"sigmas": inf, "patience": steps + 1},  # one that has diverged goes on to its end
        "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.0},
    }
    return base.but(
        {
            **{"data": data, "model": model.to_dict(), "objective.smoothing": 0.0},
            **{"optimizer": optimizer, "trainer": trainer},
        }
    )


def held_out_loss(result: Result) -> float:
    """Of the last evaluation."""
    return next(r["held_out"]["loss"] for r in reversed(result.log) if "held_out" in r)
