"""ULMFiT (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", arXiv 1801.06146).

Claim: a language model, here an AWD-LSTM, can be fine-tuned to any classification of texts without forgetting what it
knows, if every layer has a rate of its own, rates rise fast and fall slowly, and layers thaw one after the other; with
a hundred labels it then does as well as a fresh model with ten to a hundred times as many.

    onefold train ulmfit data=texts/                                               # 1: general text
    onefold train ulmfit data=my-texts/ start=runs/ulmfit out=runs/mine            # 2: the task's text
    onefold train ulmfit labels=rows.csv start=runs/mine                           # 3: the classifier

The three tricks are data: `optimizer.layer_decay` = 1/2.6 (section 3.2), `trainer.schedule` slanted triangular
(equation 3), `optimizer.groups` with `frozen_until` (section 3.3). The classifier reads the last token, the largest and
the mean of all.

Deviations: rows are whole pieces of documents of 512 tokens, where the paper carries the state on over pieces of 70;
Adam pre-trains, as it fine-tunes, where AWD-LSTM took averaged SGD; documents are byte-level BPE unless `tokenizer`
says otherwise, so no word is unknown; one direction, not an average of two; the small setting penalises no activations.
"""

from typing import Any

from onefold.models.recurrent.language_model import RecurrentConfig, RecurrentDropoutConfig
from onefold.models.text_head import TextHeadConfig
from onefold.models.transformer import count_parameters
from onefold.objectives.language import NextToken
from onefold.objectives.transfer import RegularizedNextToken
from onefold.recipes.encoders import _transfer as transfer
from onefold.study.check import Report
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear, SlantedTriangular
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

VOCAB = 30_000
DEPTH = 3
DECAY = 1 / 2.6  # of the learning rate from each layer to the one below
DROPOUT = RecurrentDropoutConfig(tokens=0.05, inputs=0.4, hidden=0.3, outputs=0.4, weights=0.5)  # section 4.1
HEAD = TextHeadConfig(pooling="concat", hidden=50, batch_norm=True, dropout=0.4)


def recipe(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """400 numbers a token, 1150 a layer. `start`: fine-tuning on text; with `labels`, as a classifier."""
    adam: dict[str, Any] = {"betas": (0.7, 0.99), "weight_decay": 0.0}
    if labels is not None:
        changes = {
            "optimizer": {**adam, "lr": 0.01, "layer_decay": DECAY, "groups": thawing(2000)},
            "trainer": {"batch": 64, "schedule": SlantedTriangular().to_dict()},
        }
        return transfer.fine_tuning(labels, start, "runs/ulmfit_classifier", changes)
    return Run(
        data=transfer.text(data, VOCAB, 512, tokenizer),
        model=None if start else RecurrentConfig(vocab=VOCAB, depth=DEPTH, dropout=DROPOUT, classifier=HEAD),
        start=start,
        objective=RegularizedNextToken(),
        optimizer=AdamWConfig(lr=0.004, **adam, layer_decay=DECAY if start else None),
        trainer=TrainerConfig(
            steps=5_000 if start else 50_000,
            batch=64,
            schedule=SlantedTriangular() if start else Linear(warmup=0.02),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/ulmfit_text" if start else "runs/ulmfit",
    )


def thawing(steps: int, depth: int = DEPTH) -> list[dict[str, Any]]:
    """Gradual unfreezing: the classifier moves at once, then a layer more at each of equal parts of the first half."""
    every = max(1, steps // (2 * (depth + 1)))
    layers = [f"blocks.{i}.*" for i in reversed(range(depth))] + ["*embed*"]
    rows = [Group(pattern=pattern, frozen_until=i * every) for i, pattern in enumerate(layers, 1)]
    return [row.to_dict() for row in rows]


def tiny(
    data: str = "stdlib", labels: str | None = None, start: str | None = None, tokenizer: str | None = None
) -> Run:
    """A million parameters on 128 tokens: three minutes on two cores."""
    run = recipe(data, labels, start, tokenizer)
    if labels is not None:
        return transfer.briefly(run, 1e-2).but({"optimizer.groups": thawing(200)})
    run = run.but({"objective": NextToken().to_dict()})
    if start:
        return run.but({"data.context": transfer.CONTEXT, "trainer": {"steps": 200, "batch": 16}})
    none = dict.fromkeys(RecurrentDropoutConfig.model_fields, 0.0)  # it reads no text twice
    shape = {"width": 128, "hidden": 256, "dropout": none, "classifier": {"dropout": 0.1}}
    return transfer.small(run, tokenizer, shape, 4e-3)


def check(report: Report) -> None:
    """The exact size; a small one learns more than counts, and classifies from few labels."""
    gates = sum(4 * out * (inward + out + 2) for inward, out in ((400, 1150), (1150, 1150), (1150, 400)))
    report.equal("parameters", count_parameters(recipe().model), gates + VOCAB * 401)
    results = transfer.pretrained("ulmfit", tiny())
    transfer.predicts(report, results)
    transfer.learns_from_few_labels(report, "ulmfit", results, tuned)


def tuned(labels: str, start: str, steps: int) -> Run:
    """As checks fine-tune."""
    return tiny(labels=labels, start=start).but({"optimizer.groups": thawing(steps)})
