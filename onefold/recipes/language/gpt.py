"""GPT (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training").

Claim: a transformer that learned to go on with long texts needs only a linear layer on its last token, and little
tuning, to beat models that were built for each task.

    onefold train gpt data=texts/                              # pre-training
    onefold train gpt labels=rows.csv start=runs/gpt           # a classifier of it: columns text and label

Fine-tuning goes on predicting the texts themselves, at half the weight (section 3.2).

Deviations: BooksCorpus is gone, so `data` is yours; byte-level BPE of 40,478 tokens is trained on it unless `tokenizer`
names a folder or file of one. What ends a document is what a task is read from, so there is no new token to learn.
Attention of fine-tuned texts does not see padding, of which there is some.
"""

from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.objectives.transfer import ClassificationAndNext
from onefold.recipes.encoders import _transfer as transfer
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

DROPOUT = {"embed.dropout": 0.1, "block.dropout": 0.1, "block.mixer.dropout": 0.1, "classifier.dropout": 0.1}


def recipe(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """117M parameters; 100 passes over about a billion tokens. With `labels` and `start`: the classifier."""
    if labels is not None:
        changes = {
            "objective": ClassificationAndNext().to_dict(),
            "optimizer": {"lr": 6.25e-5, "weight_decay": 0.01},
            "trainer.schedule.warmup": 0.002,
        }
        return transfer.fine_tuning(labels, start, "runs/gpt_classifier", changes)
    model = families.gpt().but(DROPOUT)
    return Run(
        data=transfer.text(data, model.vocab, 512, tokenizer),
        model=model,
        start=start,
        optimizer=AdamWConfig(lr=2.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
        trainer=TrainerConfig(
            steps=3_000_000,
            batch=64,
            schedule=Cosine(warmup=2000, final=0.0),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/gpt",
    )


def tiny(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """A million parameters on 128 tokens: three minutes on two cores."""
    run = recipe(data, labels, start, tokenizer)
    if labels is not None:
        return transfer.briefly(run, 5e-4)
    shape = {
        **{"width": 128, "depth": 4, "init": "fan_in"},
        "embed": {"dropout": 0.0, "position": {"context": transfer.CONTEXT}},
        "block": {"dropout": 0.0, "mixer": {"heads": 4, "dropout": 0.0}, "ffn": {"width": 512}},
    }
    return transfer.small(run, tokenizer, shape, 1e-3)


SIZE = 116_534_784


def check(report: Report) -> None:
    """The exact size; a small one learns more than counts, and classifies from few labels."""
    report.equal("parameters", count_parameters(families.gpt()), SIZE)
    results = transfer.pretrained("gpt", tiny())
    transfer.predicts(report, results)
    transfer.learns_from_few_labels(report, "gpt", results, tuned)


def tuned(labels: str, start: str, steps: int) -> Run:
    """As checks fine-tune."""
    return tiny(labels=labels, start=start).but({"optimizer.lr": 2e-3})
