"""What the recipes of encoders share: a small setting, and questions that several of their checks ask."""

import json
import sysconfig
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from onefold.core.config import unknown_name
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.sources import STDLIB
from onefold.data.text.labelled_text import LabelledTextData
from onefold.models import encoder_families as families
from onefold.models.encoder import EncoderConfig
from onefold.objectives.classification import Classification
from onefold.objectives.fine_tuning import Regression, SpanSelection, TokenClassification
from onefold.study.charts import Axis, Curve, draw
from onefold.study.check import Report
from onefold.training.optim import AdamWConfig
from onefold.training.run import Result, Run, train
from onefold.training.schedule import Linear
from onefold.training.trainer import TrainerConfig

OBJECTIVES = {
    "sequence": Classification(),
    "token": TokenClassification(),
    "span": SpanSelection(),
    "regression": Regression(),
}  # by what is learned of texts: a class, a tag of each word, where an answer stands, a number
WANTED = {
    "token": "sentences with tags: JSONL with tokens and tags, or a CoNLL file",
    "span": "questions, contexts and answers: JSONL, or a .json file as SQuAD's",
    "regression": "texts with a number each",
}
SEEDS = (0, 1, 2)
VOCAB = 2048
LABELS = (4, 16, 64)  # of each class
TESTED = 40  # held-out passages of each class
HELD_OUT = 0.2  # share of the files that no model of a check sees, of either kind
STEPS = 400  # of pre-training in a check
TUNING = 100  # of fine-tuning


def small_encoder(context: int = 128) -> EncoderConfig:
    """About a million parameters."""
    return families.roberta().but({**_shape(context), "vocab": VOCAB})


def small(run: Run, tokenizer: str | None) -> Run:
    """The run with a small model on 128 tokens; tokenizer: None where one is trained."""
    shape = {f"model.{name}": value for name, value in _shape(128).items()}
    changes = {
        **shape,
        "model.vocab": VOCAB if tokenizer is None else run.model.vocab,
        "data.context": 128,
        "optimizer.lr": 1e-3,
        "trainer": {"steps": 1000, "batch": 32, "clip": 1.0, "evaluate_every": 250, "checkpoint_every": 250},
        "trainer.schedule.warmup": 0.1,
    }
    return run.but(changes | ({"data.tokenizer.vocab": VOCAB} if tokenizer is None else {}))


def _shape(context: int) -> dict[str, Any]:
    return {
        **{"width": 128, "depth": 4, "context": context, "init": "fan_in"},
        "embed": {"dropout": 0.0, "position": {"context": context}},
        "block": {"dropout": 0.0, "mixer": {"heads": 4, "dropout": 0.0}, "ffn": {"width": 512}},
    }


def fine_tuning(task: str, data: str, start: str | None, context: int | None, optimizer: AdamWConfig, out: str) -> Run:
    """A model of texts that learns a task from rows. context: tokens; None: 384 for answers, as usual, 128 for others.

    Raises UserError for a task that there is not, and where `data` is still the text of pre-training.
    """
    if task not in OBJECTIVES:
        raise UserError(unknown_name(task, OBJECTIVES).replace("setting", "task"))
    if data == STDLIB and task in WANTED:
        raise UserError(f"task={task} needs data=FILE with {WANTED[task]}")
    context = context or (384 if task == "span" else 128)
    return Run(
        data=LabelledTextData(path=data, task=task, context=context, overlap=context // 3),
        start=start,
        objective=OBJECTIVES[task],
        optimizer=optimizer,
        trainer=TrainerConfig(
            steps=2000, batch=32, clip=1.0, schedule=Linear(warmup=0.06), evaluate_every=200, checkpoint_every=500
        ),
        out=out,
    )


def started(task: str, start: str | None) -> str:
    """`start`, which fine-tuning needs. Raises UserError that says what it may be."""
    if not start:
        raise UserError(
            f"task={task} fine-tunes a model: give start=FOLDER of a run or a published model; "
            f"from scratch: onefold train text_classifier task={task}"
        )
    return start


def in_minutes(run: Run) -> Run:
    """Fine-tuning of a small encoder."""
    changes = {"optimizer.lr": 5e-4, "trainer": {"steps": 200, "evaluate_every": 50, "checkpoint_every": 100}}
    return run.but(changes)


def briefly(run: Run, steps: int, batch: int) -> Run:
    """As a check trains it: judged at the end alone, by a fair sample."""
    trainer = {"steps": steps, "batch": batch, "evaluate_every": steps, "checkpoint_every": steps}
    return run.but({"trainer": {**trainer, "evaluate_batches": 64}})


def seeded(run: Run, name: str) -> list[Result]:
    """The run with each seed; what is finished already is only read."""
    return [train(run.but({"seed": seed, "out": f"runs/check/{name}/{seed}"})) for seed in SEEDS]


def last(result: Result, figure: str) -> float:
    """Of the last evaluation."""
    return next(r["held_out"][figure] for r in reversed(result.log) if "held_out" in r)


def accuracy(result: Result) -> float:
    return last(result, "accuracy")


def largest_class(result: Result) -> float:
    """The share of the held-out texts that are of the class with most of them."""
    dataset = result.run.data.prepare(result.out / "data", keep=True)
    counts = Counter(name for _, _, name in dataset.texts("held_out"))
    return max(counts.values()) / counts.total()


@cache
def pretrained() -> list[Result]:
    """Small encoders, briefly trained without labels, which several checks begin with."""
    from onefold.recipes import roberta

    return seeded(briefly(roberta.tiny(), STEPS, 16).but({"data.held_out": HELD_OUT}), "roberta")


def fills_in(report: Report, results: list[Result], figure: str = "loss") -> None:
    """Hidden tokens are found better than by how often each occurs."""
    dataset = results[0].run.data.prepare(results[0].out / "data", keep=True)
    counts = np.ones(dataset.tokenizer.size)
    for batch in dataset.evaluation("train", 64):
        counts += np.bincount(batch.targets[batch.weights > 0], minlength=len(counts))
    costs = -np.log(counts / counts.sum())
    asked = np.concatenate([costs[b.targets[b.weights > 0]] for b in dataset.evaluation("held_out", 64)])
    losses = [last(r, figure) for r in results]
    report.less("nats for a hidden token on files held out, against counts of tokens", losses, asked.mean().item())


def masks_that_change(report: Report) -> None:
    """Held-out loss with the same mask for a document in all epochs, and with another one in each, on little text."""
    from onefold.recipes import roberta

    package = Path(sysconfig.get_paths()["stdlib"]) / "email"
    for name, masks in (("static", 1), ("dynamic", None)):
        changes = {"data.sources": [str(package)], "data.held_out": HELD_OUT, "data.masking.masks": masks}
        results = seeded(briefly(roberta.tiny(), STEPS, 16).but(changes), f"roberta/masks/{masks}")
        epochs = json.loads((results[0].checkpoint / "state" / "state.json").read_text())["loader"]["epoch"]
        losses = [last(r, "loss") for r in results]
        report.note(f"held-out loss, {name} masks, {epochs} epochs of {package.name}", losses)


def fine_tuning_saves_labels(report: Report) -> None:
    """Accuracy of small encoders, pre-trained and from scratch, that learn from few labels of each class."""
    from onefold.recipes import text_classifier

    found: dict[str, list[list[float]]] = {"from scratch": [], "pre-trained": []}
    for each in LABELS:
        train_file, test_file = some_passages(each)
        data = {"data.path": str(train_file), "data.validation": str(test_file)}
        scores: dict[str, list[float]] = defaultdict(list)
        for before in pretrained():
            seed = before.run.seed
            read = {"kind": "load", "path": str(before.checkpoint)}  # the same tokenizer
            scratch = {"start": None, "model": small_encoder().to_dict(), "data.tokenizer": read}
            for name, own in (("from scratch", scratch), ("pre-trained", {})):
                run = briefly(text_classifier.tiny(start=str(before.out)), TUNING, 16)
                out = f"runs/check/roberta/labels/{name.replace(' ', '-')}-{each}/{seed}"
                scores[name].append(accuracy(train(run.but({**data, "seed": seed, "out": out, **own}))))
        for name, values in scores.items():
            report.note(f"held-out accuracy, {each} labels of each package, {name}", values)
            found[name].append(values)
    x = np.array(LABELS, float)
    curves = []
    for i, (name, rows) in enumerate(found.items(), 1):
        y = 100 * np.array(rows)  # [labels, seeds]
        band = (y.min(1), y.max(1))
        curves.append(Curve(x, y.mean(1), f"series-{i}", "dots", name, band))
    report.chart(
        "accuracy against labels",
        draw(curves, Axis("labels of each package", log=True), Axis("held-out accuracy, %"), title="Accuracy"),
    )
    helped = [str(n) for n, fresh, tuned in zip(LABELS, *found.values()) if fmean(tuned) > fmean(fresh)]
    report.note("labels of each package with which pre-training helped", ", ".join(helped) or "none of them")


def some_passages(each: int) -> tuple[Path, Path]:
    """Tables of passages and their packages: `each` of every one to learn from, the same others to be judged by."""
    folder = Path("runs/check/passages")
    files = folder / f"{each}.jsonl", folder / "held_out.jsonl"
    if not all(file.is_file() for file in files):
        from onefold.data.text.passages import passages

        by_class: dict[tuple[str, str], list[str]] = defaultdict(list)
        for passage in passages(HELD_OUT, LabelledTextData().split_seed):
            by_class[passage.split, passage.package].append(passage.text)
        generator = np.random.default_rng(0)
        for file, split, most in ((files[0], "train", each), (files[1], "held_out", TESTED)):
            rows: list[dict[str, Any]] = []
            for (own, package), texts in by_class.items():
                if own == split:
                    order = generator.permutation(len(texts))[:most]
                    rows += [{"text": texts[i], "label": package} for i in order]
            atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
    return files
