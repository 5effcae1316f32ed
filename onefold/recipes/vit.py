"""ViT (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929).

Claim: a plain transformer over squares of a picture needs no convolutions, once it has seen enough pictures; with few,
convolutions, which know that neighbours belong together, learn faster.

Deviations: JFT-300M was never published, so `data` is yours; the settings are those of table 3 for ImageNet from
scratch, but for dropout, which is left out after the first layer of a feed-forward. Pre-training without labels is in
mae.py, fine-tuning in classifier.py.
"""

from typing import Any

from onefold.core.errors import UserError
from onefold.data.images import ImageData
from onefold.models import vision_sizes
from onefold.models.transformer import count_parameters
from onefold.models.vit import ViTConfig
from onefold.objectives.classification import Classification
from onefold.recipes import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optim import AdamWConfig
from onefold.training.run import Run
from onefold.training.schedule import Cosine
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "digits", size: str = "b/16", image: int = 224) -> Run:
    """Sizes: ti/16, s/16, s/32, b/16, b/32, l/16, l/32, h/14."""
    return Run(
        data=ImageData(path=data, side=image, channels=3, augment=pictures.CROPS),
        model=vision_sizes.vit(size, image).but({"dropout": 0.1, "block.dropout": 0.1}),
        objective=Classification(),
        optimizer=AdamWConfig(lr=3e-3, betas=(0.9, 0.999), weight_decay=0.3),
        trainer=TrainerConfig(
            steps=93_000,
            batch=4096,
            schedule=Cosine(warmup=10_000, final=0.0),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/vit",
    )


def tiny(data: str = "digits", image: int | None = None) -> Run:
    """A quarter of a million parameters on 16 to 64 squares of a picture: a minute or two on two cores."""
    image = image or pictures.small_side(data)
    return recipe(data).but(
        {
            "data": pictures.small_data(data, image),
            "model": shape(image, 1 if data == "digits" else 3).to_dict(),
            "optimizer": {"lr": 3e-3, "weight_decay": 0.05},
            **pictures.TINY_TRAINER,
        }
    )


def shape(image: int, channels: int, width: int = 96, depth: int = 6) -> ViTConfig:
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


SIZES = {"b/16": 86_567_656, "l/16": 304_326_632}


def check(report: Report) -> None:
    """Exact sizes; with few pictures convolutions are ahead, with more the lead shrinks; pre-training saves labels."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(vision_sizes.vit(size)), published)
    pictures.convolutions_lead_less_with_more_pictures(report)
    pictures.pretraining_saves_labels(report)
