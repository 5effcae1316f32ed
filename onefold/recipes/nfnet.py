"""NFNet (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", arXiv 2102.06171).

Claim: a residual network without normalisation trains at large batches and learning rates when the gradient of each
unit is clipped relative to the size of its weights; scaled (Smith et al. 2023, 2310.16764), such convnets match ViTs
that were trained with as much compute.

Deviations: RandAugment goes no further than magnitude 10, where the paper has 15 from F3 on; evaluation is at the side
of training, where the paper's is larger. The learning rate is 0.1 for each 256 pictures of a batch.
"""

from statistics import fmean

from onefold.core.errors import UserError
from onefold.data.images import ImageData
from onefold.data.transforms import Flip, MixupOrCutMix, RandAugment, RandomResizedCrop
from onefold.models import vision_sizes
from onefold.objectives.classification import Classification
from onefold.recipes import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optim import SGDConfig
from onefold.training.run import Run, train
from onefold.training.schedule import Cosine
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


def check(report: Report) -> None:
    """Adaptive clipping at rising learning rates, against none: where does training still work?"""
    survived = {}
    for clip in (None, 0.01):
        for lr in (0.1, 1.6, 6.4):
            name = f"nfnet/{'clipped' if clip else 'plain'}-{lr}"
            changes = {"optimizer": {"lr": lr, "adaptive_clip": clip}, "trainer": {"steps": 120, "batch": 128}}
            errors = []
            for seed in pictures.SEEDS:
                run = tiny().but({**changes, "trainer.skip": None, "seed": seed, "out": f"runs/check/{name}/{seed}"})
                try:
                    errors.append(1 - pictures.accuracy(train(run)))
                except UserError:  # nothing is finite any more
                    errors.append(0.9)
            report.note(f"held-out error, {'adaptive clipping' if clip else 'no clipping'}, learning rate {lr}", errors)
            survived[clip, lr] = fmean(errors)
    report.less("with clipping, error at the largest learning rate, against guessing", survived[0.01, 6.4], 0.85)
    report.note("without clipping it learned there, too", survived[None, 6.4] < 0.85)
