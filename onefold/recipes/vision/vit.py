"""ViT (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929).

Claim: a plain transformer over squares of a picture needs no convolutions, once it has seen enough pictures; with few,
convolutions, which know that neighbours belong together, learn faster.

Deviations: JFT-300M was never published, so `data` is yours; the settings are those of table 3 for ImageNet from
scratch, but for dropout, which is left out after the first layer of a feed-forward. Pre-training without labels is in
mae.py, fine-tuning in classifier.py.
"""

from statistics import fmean

from onefold.data.pictures.images import ImageData
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes
from onefold.objectives.classification import Classification
from onefold.recipes.vision import _pictures as pictures
from onefold.recipes.vision import mae
from onefold.study.check import Report, whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run, train
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
            "model": pictures.small_vit(image, 1 if data == "digits" else 3).to_dict(),
            "optimizer": {"lr": 3e-3, "weight_decay": 0.05},
            **pictures.TINY_TRAINER,
        }
    )


SIZES = {"b/16": 86_567_656, "l/16": 304_326_632}


def check(report: Report) -> None:
    """Exact sizes; with few pictures convolutions are ahead, with more the lead shrinks; pre-training saves labels."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(vision_sizes.vit(size)), published)
    convolutions_lead_less_with_more_pictures(report)
    pretraining_saves_labels(report)


def convolutions_lead_less_with_more_pictures(report: Report) -> None:
    """Error of a small ViT less that of a convnet of its size, learning from few and from all digits."""
    leads = {}
    for each in (10, 130):
        folder, scores = pictures.some_digits(each), {}
        for name, model in (("vit", pictures.small_vit(8, 1)), ("convnet", pictures.convnet(8, 1))):
            run = tiny().but({"data.path": str(folder), "model": model.to_dict()})
            scores[name] = [pictures.accuracy(result) for result in pictures.seeded(run, f"vit/{name}-{each}")]
            report.note(f"held-out accuracy, {name}, {each} pictures of each digit", scores[name])
        leads[each] = [c - v for c, v in zip(scores["convnet"], scores["vit"])]
        report.note(f"the convnet's lead, {each} of each", leads[each])
        report.less(f"held-out error of the ViT, {each} of each, against guessing", 1 - fmean(scores["vit"]), 0.9)
    report.note("the lead shrinks with more pictures", fmean(leads[130]) < fmean(leads[10]))


def pretraining_saves_labels(report: Report) -> None:
    """A ViT that filled in masked digits without labels first, and one from scratch: both learn ten of each digit."""
    fresh = tiny().but({"data.path": str(pictures.some_digits(10))})
    scratch, tuned = [], []
    for before, after in zip(mae.pretrained(), pictures.seeded(fresh, "vit/vit-10")):
        seed = before.run.seed
        changes = {"start": str(before.out), "seed": seed, "out": f"runs/check/vit/tuned/{seed}"}
        tuned.append(pictures.accuracy(whole(train(fresh.but(changes)))))
        scratch.append(pictures.accuracy(after))
    report.note("held-out accuracy, 10 labels of each digit, from scratch", scratch)
    report.note("the same after masked pre-training on 130 of each without labels", tuned)
    report.note("pre-training helped", fmean(tuned) > fmean(scratch))
