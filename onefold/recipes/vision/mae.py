"""MAE (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377).

Claim: a ViT that only sees a quarter of the squares of pictures, and learns to fill in the pixels of the others, gets
features from which classes are learned with fewer labels; and cheaply, since the encoder never reads what is masked.

Deviation: matrices begin as truncated N(0, 0.02), as in the other transformers here, instead of Xavier's uniform.

A classifier begins with its encoder: `onefold train vit --tiny start=runs/mae`.
"""

from onefold.data.pictures.images import ImageData
from onefold.data.pictures.transforms import Flip, RandomResizedCrop
from onefold.models.vision import sizes as vision_sizes
from onefold.objectives.reconstruction import Reconstruction
from onefold.recipes.vision import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Result, Run
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "digits", size: str = "b/16", image: int = 224) -> Run:
    """Sizes of the encoder: b/16, l/16, h/14 in the paper. 800 epochs of ImageNet, 40 of them warm-up."""
    return Run(
        data=ImageData(
            path=data,
            side=image,
            channels=3,
            augment=(RandomResizedCrop(area=(0.2, 1.0), interpolation="bicubic"), Flip()),
        ),
        model=vision_sizes.mae(size, image),
        objective=Reconstruction(),
        optimizer=AdamWConfig(lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
        trainer=TrainerConfig(
            steps=250_000,
            batch=4096,
            clip=None,
            schedule=Cosine(warmup=12_500, final=0.0),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/mae",
    )


def tiny(data: str = "digits", image: int | None = None) -> Run:
    """Around the encoder of the small ViT: a minute or two on two cores."""
    image = image or pictures.small_side(data)
    encoder = pictures.small_vit(image, 1 if data == "digits" else 3).but({"classes": 0})
    return recipe(data).but(
        {
            "data": pictures.small_data(data, image),
            "model": {"encoder": encoder.to_dict(), "width": 64, "depth": 2},
            "model.block": {"mixer": {"heads": 2}, "ffn": {"width": 256}},
            "optimizer.lr": 1e-3,
            **pictures.TINY_TRAINER,
            "trainer.steps": 800,
            "trainer.batch": 128,
        }
    )


def pretrained() -> list[Result]:
    """Masked autoencoders of many digits, which the check of ViT begins with, too."""
    return pictures.seeded(tiny().but({"data.path": str(pictures.some_digits(130))}), "mae")


def check(report: Report) -> None:
    """What is filled in is better than the mean of the squares; the features tell digits apart without any label."""
    from onefold.infer.evaluation.features import judge_features
    from onefold.interop.open import open_model

    results = pretrained()
    losses = [r.log[-1]["held_out"]["loss"] for r in results]
    # Targets have variance 1, so predicting each square's mean costs 1.
    report.less("squared error of masked squares, against their own mean", losses, 1.0)
    judged, fresh = [], []
    for result in results:
        dataset = result.run.data.prepare(result.out / "data", keep=True)
        judged.append(judge_features(open_model(result.out).model, dataset)["neighbours"])
        fresh.append(judge_features(result.run.model.build(), dataset)["neighbours"])
    report.note("digits named by nearest neighbours among its features", judged)
    report.note("the same among those of an untrained encoder", fresh)
