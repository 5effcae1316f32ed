"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545).

Claim: a ResNet that takes over, one by one, the habits of vision transformers (squares at the stem, wide feed-forwards,
large kernels of each channel alone, fewer norms and activations, their training recipe) is as good as they are.

Deviations: none in the model; stochastic depth, augmentation and averages are those of table 5 for ImageNet-1K.
"""

from onefold.data.images import ImageData
from onefold.data.transforms import Flip, MixupOrCutMix, RandAugment, RandomErasing, RandomResizedCrop
from onefold.models import vision_sizes
from onefold.models.transformer import count_parameters
from onefold.objectives.classification import Classification
from onefold.recipes import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optim import AdamWConfig
from onefold.training.run import Run
from onefold.training.schedule import Cosine
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


def check(report: Report) -> None:
    """Exact sizes; a small one names handwritten digits."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(vision_sizes.convnext(size)), published)
    results = pictures.seeded(tiny(), "convnext")
    report.less("held-out error on the digits", [1 - pictures.accuracy(r) for r in results], 0.1)
