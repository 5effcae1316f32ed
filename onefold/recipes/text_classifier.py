"""Your own texts and what they are: from a published or self-trained encoder to a classifier.

    onefold train text_classifier data=rows.csv start=path/to/roberta     # a table with columns text and label
    onefold train text_classifier data=rows.csv                           # from scratch, a small encoder

The settings are those that RoBERTa was fine-tuned with (arXiv 1907.11692, table 10), but for the number of steps.
"stdlib" is passages of Python's standard library and the packages that they come from.
"""

from onefold.data.text.documents import TrainBPE
from onefold.data.text.labelled_text import LabelledTextData
from onefold.data.text.tokenizer import ENCODER_TOKENS
from onefold.objectives.classification import Classification
from onefold.recipes import _encoders as encoders
from onefold.study.check import Report
from onefold.training.optim import AdamWConfig
from onefold.training.run import Run
from onefold.training.schedule import Linear
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "stdlib", start: str | None = None, context: int = 128) -> Run:
    """context: tokens of a text at most, which the model must have room for."""
    run = Run(
        data=LabelledTextData(path=data, context=context),
        start=start,
        objective=Classification(),
        optimizer=AdamWConfig(lr=2e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
        trainer=TrainerConfig(
            steps=2000, batch=32, clip=1.0, schedule=Linear(warmup=0.06), evaluate_every=200, checkpoint_every=500
        ),
        out="runs/text_classifier",
    )
    if start:
        return run
    tokenizer = TrainBPE(vocab=encoders.VOCAB, special=ENCODER_TOKENS)
    model = encoders.small_encoder(context)
    return run.but({"data.tokenizer": tokenizer.to_dict(), "model": model.to_dict(), "optimizer.lr": 1e-3})


def tiny(data: str = "stdlib", start: str | None = None, context: int = 128) -> Run:
    """A minute or two on two cores; `start` is then a small one as well, as of `onefold train roberta --tiny`."""
    changes = {"optimizer.lr": 5e-4, "trainer": {"steps": 200, "evaluate_every": 50, "checkpoint_every": 100}}
    return recipe(data, start, context).but(changes)


def check(report: Report) -> None:
    """From scratch it tells packages of the standard library apart better than their sizes do."""
    results = encoders.seeded(tiny(), "text_classifier")
    largest = encoders.largest_class(results[0])
    report.less("held-out error on packages", [1 - encoders.accuracy(r) for r in results], 1 - largest)
