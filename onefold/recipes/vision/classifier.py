"""Your own pictures, sorted into a folder for each class: from a published or self-trained model to a classifier.

    onefold train classifier data=photos/ start=path/to/convnext     # fine-tune; a Hugging Face or timm folder, a run
    onefold train classifier data=photos/                            # from scratch, a small ConvNeXt

Deeper layers move faster than early ones, which know edges and colours already (layer-wise decay, arXiv 2106.08254);
averaged weights are what is kept. The report shows which classes are confused, the worst mistakes, and where the model
looks.
"""

from onefold.data.pictures.images import ImageData
from onefold.models.vision.convnext import ConvNeXtConfig
from onefold.objectives.classification import Classification
from onefold.recipes.vision import _pictures as pictures
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "digits", start: str | None = None, image: int | None = None) -> Run:
    """image: pixels a side that the model sees; None: as `start` was trained, or 64 (8 for the digits) without it."""
    if start:
        frame = {"data": {"side": image, "augment": [{"kind": "random_resized_crop"}, {"kind": "flip"}]}}
        if data == "digits":
            frame["data"]["augment"] = []
        return _run(data).but({"start": start, "optimizer": {"lr": 5e-4, "layer_decay": 0.75}, **frame})
    side = image or pictures.small_side(data)
    return _run(data).but({"data": pictures.small_data(data, side), "model": network(data, side).to_dict()})


def tiny(data: str = "digits", start: str | None = None, image: int | None = None) -> Run:
    """A few minutes on two cores."""
    return recipe(data, start, image).but({"trainer": {"steps": 300, "evaluate_every": 50, "checkpoint_every": 100}})


def network(data: str, side: int) -> ConvNeXtConfig:
    return pictures.convnet(side, 1 if data == "digits" else 3)


def _run(data: str) -> Run:
    return Run(
        data=ImageData(path=data),
        objective=Classification(smoothing=0.1),
        optimizer=AdamWConfig(lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05, ema=0.98),
        trainer=TrainerConfig(
            steps=2000, batch=64, schedule=Cosine(warmup=0.1, final=0.0), evaluate_every=200, checkpoint_every=500
        ),
        out="runs/classifier",
    )


def check(report: Report) -> None:
    """From scratch it names handwritten digits; from there it learns other classes with few pictures of each."""
    results = pictures.seeded(tiny(), "classifier")
    report.less("held-out error on the digits", [1 - pictures.accuracy(r) for r in results], 0.1)
