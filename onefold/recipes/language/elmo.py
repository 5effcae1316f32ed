"""ELMo (Peters et al. 2018, "Deep contextualized word representations", arXiv 1802.05365).

Claim: what a word means depends on its sentence. Vectors that two language models, one for each direction, have inside
for a word in its place carry syntax in low layers and meaning in high ones; a task that learns its own mix of them, the
models staying as they are, gets better by a fifth of its error or more.

    onefold train elmo data=texts/                             # the two language models
    onefold train elmo labels=rows.csv start=runs/elmo         # a classifier of texts over the mix of their layers

Deviations: token vectors come from a table of byte-level tokens, not from convolutions over characters, so a vector is
that of a token, not of a word; the whole softmax instead of a sample of 8,192; rows are whole pieces of documents
instead of states carried on over 20 tokens; AdamW instead of Adagrad; states are not clipped. The task's own model is
an LSTM in both directions of whose outputs the largest count.
"""

from typing import Any

from onefold.models.recurrent.bilm import BiLMConfig
from onefold.models.text_head import TextHeadConfig
from onefold.models.transformer import count_parameters
from onefold.objectives.transfer import BothDirections
from onefold.recipes.encoders import _transfer as transfer
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

VOCAB = 50_000


def recipe(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """Two layers of 4,096 cells, projected to 512 numbers, each way. With `labels` and `start`: the classifier."""
    if labels is not None:
        return transfer.fine_tuning(labels, start, "runs/elmo_classifier", {"optimizer.lr": 1e-3})
    return Run(
        data=transfer.text(data, VOCAB, 512, tokenizer),
        model=BiLMConfig(vocab=VOCAB),
        start=start,
        objective=BothDirections(),
        optimizer=AdamWConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0),
        trainer=TrainerConfig(
            steps=100_000,
            batch=128,
            clip=10.0,
            schedule=Linear(warmup=0.01),
            evaluate_every=2000,
            checkpoint_every=2000,
        ),
        out="runs/elmo",
    )


def tiny(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """A million and a half parameters on 128 tokens: three minutes on two cores."""
    run = recipe(data, labels, start, tokenizer)
    if labels is not None:
        return transfer.briefly(run, 5e-3)
    shape: dict[str, Any] = {"width": 128, "hidden": 256, "dropout": 0.0, "classifier": {"lstm": 64, "dropout": 0.2}}
    return transfer.small(run, tokenizer, shape, 4e-3)


def check(report: Report) -> None:
    """The exact size; a small one learns more than counts in both directions, and classifies from few labels."""
    layer = 4 * 4096 * (512 + 512 + 2) + 512 * 4096
    without = BiLMConfig(vocab=VOCAB, classifier=TextHeadConfig())
    report.equal("parameters", count_parameters(without), 4 * layer + VOCAB * (512 + 513))
    results = transfer.pretrained("elmo", tiny())
    transfer.predicts(report, results)
    report.note("nats a token, read backwards", [transfer.held_out(result)["backward"] for result in results])
    transfer.learns_from_few_labels(report, "elmo", results, tuned)


def tuned(labels: str, start: str, steps: int) -> Run:
    """As checks fine-tune."""
    return tiny(labels=labels, start=start)
