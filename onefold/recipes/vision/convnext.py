"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545).

Claim: a ResNet that takes over, one by one, the habits of vision transformers (squares at the stem, wide feed-forwards,
large kernels of each channel alone, fewer norms and activations, their training recipe) is as good as they are.

Deviations: none in the model; stochastic depth, augmentation and averages are those of table 5 for ImageNet-1K.
"""

from bisect import bisect_left
from functools import cache
from typing import Any

from onefold.data.pictures.images import ImageData
from onefold.data.pictures.transforms import Flip, MixupOrCutMix, RandAugment, RandomErasing, RandomResizedCrop
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.residual import ResidualConfig
from onefold.objectives.classification import Classification
from onefold.recipes.vision import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

DROP_PATH = {"t": 0.1, "s": 0.4, "b": 0.5, "l": 0.5, "xl": 0.5}


def recipe(data: str = "digits", size: str = "t", image: int = 224) -> Run:
    """Sizes: t, s, b, l, xl. 300 epochs of ImageNet, 20 of them warm-up."""
    augment = (RandomResizedCrop(), Flip(), RandAugment(), RandomErasing(), MixupOrCutMix())
    return Run(
        data=ImageData(path=data, side=image, channels=3, augment=augment),
        model=vision_sizes.convnext(size, image).but({"drop_path": DROP_PATH.get(size, 0.1)}),
        objective=Classification(smoothing=0.1),
        optimizer=AdamWConfig(lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05, ema=0.9999),
        trainer=TrainerConfig(
            steps=93_750,
            batch=4096,
            clip=None,
            schedule=Cosine(warmup=6_250, final=0.0),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/convnext",
    )


def tiny(data: str = "digits", image: int | None = None) -> Run:
    """Two stages on pictures of 8 or 64 pixels: a minute or two on two cores."""
    image = image or pictures.small_side(data)
    return recipe(data).but(
        {
            "data": pictures.small_data(data, image),
            "model": pictures.convnet(image, 1 if data == "digits" else 3).to_dict(),
            "optimizer.ema": 0.98,
            **pictures.TINY_TRAINER,
        }
    )


SIZES = {"t": 28_589_128}

# Section 2 of the paper: what each step changes of a ResNet (top) that is trained as a ConvNeXt is, and the accuracy on
# ImageNet-1K that ResNet-50 has after it.
LADDER: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("ResNet", {}, 78.8),
    ("blocks by stage 1:1:3:1", {"blocks": [1, 1, 3, 1]}, 79.4),
    ("squares at the stem", {"stem": "patch", "stem_width": None}, 79.5),
    ("depthwise, wider", {"block": "in norm act depthwise norm act out norm"}, 80.5),
    ("inverted bottleneck", {"inner": 4.0}, 80.6),
    ("depthwise first", {"block": "depthwise norm act in norm act out norm"}, 79.9),
    ("7×7", {"kernel": 7}, 80.6),
    ("GELU", {"activation": "gelu"}, 80.6),
    ("one activation", {"block": "depthwise norm in norm act out norm", "after": ""}, 81.3),
    ("one norm", {"block": "depthwise norm in act out"}, 81.4),
    ("layer norm", {"norm": "layer"}, 81.5),
    ("halving apart", {"down": "apart"}, 82.0),
    ("layer scale: ConvNeXt", {"block": "depthwise norm in act out scale"}, 82.1),
)
RESNET = ResidualConfig(
    image=32, channels=1, classes=10, blocks=(1, 1, 2, 1), widths=(48, 96, 192, 384), stem_width=12, stride=2
)


@cache
def ladder() -> dict[str, ResidualConfig]:
    """The network of each step in miniature, as wide as it must be to cost what the ResNet costs."""
    steps, model = {}, RESNET
    cost = pictures.flops(RESNET)
    for name, change, _ in LADDER:
        model = model.but(change)
        steps[name] = model = _costing(cost, model)
    return steps


def _costing(cost: float, model: ResidualConfig) -> ResidualConfig:
    """The model with the widths, each about twice the one before, that bring it closest to `cost` operations."""

    def wide(quarters: int) -> ResidualConfig:
        widths = [round(quarters / 4 * 2**i) for i in range(len(model.blocks))]
        return model.but({"widths": widths, "stem_width": model.stem_width and widths[0] // 4})

    choices = range(32, 513)
    above = bisect_left(choices, cost, key=lambda quarters: pictures.flops(wide(quarters)))
    return min(map(wide, choices[max(above - 1, 0) : above + 1]), key=lambda m: abs(pictures.flops(m) - cost))


def from_resnet_to_convnext(report: Report) -> None:
    """Accuracy in per cent after each step, at equal arithmetic, from the same pictures in the same order."""
    run = tiny().but(
        {
            "data": {"path": pictures.stored(pictures.real_pictures()), "side": RESNET.image},
            "optimizer.ema": None,
            "trainer": {"steps": 200, "evaluate_every": 200, "checkpoint_every": 200},
        }
    )
    for (name, _, paper), (number, model) in zip(LADDER, enumerate(ladder().values())):
        results = pictures.seeded(run.but({"model": model.to_dict()}), f"convnext/ladder/{number}")
        cost = f"{pictures.flops(model) / 1e6:.1f} MFLOPs, width {model.widths[0]}"
        report.published(f"{name} ({cost})", paper, [100 * pictures.accuracy(r) for r in results])


def check(report: Report) -> None:
    """Exact sizes; a small one names handwritten digits; the way from ResNet, step by step."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(vision_sizes.convnext(size)), published)
    results = pictures.seeded(tiny(), "convnext/digits")
    report.less("held-out error on the digits", [1 - pictures.accuracy(r) for r in results], 0.1)
    from_resnet_to_convnext(report)
