"""What the recipes of encoders share: a small setting, and questions that several of their checks ask."""

import json
import sysconfig
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onefold.core.config import unknown_name
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.sources import STDLIB
from onefold.data.text.labelled.text import LabelledTextData
from onefold.infer.evaluation.features import Features, linear_probe
from onefold.infer.model import load
from onefold.infer.text_encoder import TextEncoder
from onefold.models import encoder_families as families
from onefold.models.encoder import EncoderConfig
from onefold.objectives.classification import Classification
from onefold.objectives.fine_tuning import Regression, SpanSelection, TokenClassification
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Result, Run, train
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
LABELS = (8, 32, 128)  # of each class
TESTED = 40  # held-out passages of each class
HELD_OUT = 0.2  # share of the files that no model of a check sees, of either kind
STEPS = 2000  # of pre-training in a check: small models that hide a seventh of the tokens learn by many small steps…
TUNING = 150  # …of fine-tuning
ROWS = 16
RATE = 3e-3
TUNING_RATE = 2e-3  # of three, the one that served both ways best with a seed that is not among SEEDS


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


def _shape(context: int, width: int = 128, depth: int = 4) -> dict[str, Any]:
    return {
        **{"width": width, "depth": depth, "context": context, "init": "fan_in", "dropout": 0.0},
        "embed": {"dropout": 0.0, "position": {"context": context}},
        "block": {"dropout": 0.0, "mixer": {"heads": width // 32, "dropout": 0.0}, "ffn": {"width": 4 * width}},
    }


MINIATURE = _shape(64, width=64, depth=2)


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


def miniature(run: Run) -> Run:
    """What checks train: a quarter of a million parameters, with their embedding, on 64 tokens."""
    shape = {f"model.{name}": value for name, value in MINIATURE.items()} if run.model else {}
    return run.but({**shape, "data.context": MINIATURE["context"]})


def briefly(run: Run, steps: int, batch: int) -> Run:
    """As a check trains it: judged at the end alone, by a fair sample."""
    trainer = {"steps": steps, "batch": batch, "evaluate_every": steps, "checkpoint_every": steps}
    return run.but({"trainer": {**trainer, "evaluate_batches": 64}})


def seeded(run: Run, name: str) -> list[Result]:
    """The run with each seed; what is finished already is only read."""
    return [whole(train(run.but({"seed": seed, "out": f"runs/check/{name}/{seed}"}))) for seed in SEEDS]


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
    from onefold.recipes.encoders import roberta

    return seeded(trained_briefly(roberta.tiny(), STEPS), "roberta")


def trained_briefly(run: Run, steps: int) -> Run:
    """A miniature that learns without labels."""
    return briefly(miniature(run), steps, ROWS).but({"data.held_out": HELD_OUT, "optimizer.lr": RATE})


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
    from onefold.recipes.encoders import roberta

    package = Path(sysconfig.get_paths()["stdlib"]) / "email"
    found = []
    for name, masks in (("static", 1), ("dynamic", None)):
        changes = {"data.sources": [str(package)], "data.masking.masks": masks}
        results = seeded(trained_briefly(roberta.tiny(), max(1, STEPS // 2)).but(changes), f"roberta/masks/{masks}")
        epochs = json.loads((results[0].checkpoint / "state" / "state.json").read_text())["loader"]["epoch"]
        found.append([last(r, "loss") for r in results])
        report.note(f"held-out loss, {name} masks, {epochs} epochs of {package.name}", found[-1])
    better = sum(dynamic < static for static, dynamic in zip(*found))
    report.note("seeds with which masks that change gave the lower loss", f"{better} of {len(SEEDS)}")


def fine_tuning_saves_labels(report: Report) -> None:
    """Accuracy of small encoders, pre-trained and from scratch, that learn from few labels of each class.

    And that of a linear probe: logistic regression on the mean of features that stay as they are, trained or fresh.
    """
    from onefold.recipes.encoders import text_classifier

    ways = "from scratch", "pre-trained", "probe of fresh features", "probe of pre-trained features"
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for each in LABELS:
        train_file, test_file = some_passages(each)
        data = {"data.path": str(train_file), "data.validation": str(test_file), "optimizer.lr": TUNING_RATE}
        scores: dict[str, list[float]] = defaultdict(list)
        for before in pretrained():
            seed = before.run.seed
            read = {"kind": "load", "path": str(before.checkpoint)}  # the same tokenizer
            model = small_encoder().but(MINIATURE).to_dict()
            scratch = {"start": None, "model": model, "data.tokenizer": read}
            for name, own in (("from scratch", scratch), ("pre-trained", {})):
                run = briefly(miniature(text_classifier.tiny(start=str(before.out))), TUNING, ROWS)
                out = f"runs/check/roberta/labels/{name.replace(' ', '-')}-{each}/{seed}"
                scores[name].append(accuracy(whole(train(run.but({**data, "seed": seed, "out": out, **own})))))
            encoder = load(before.checkpoint)
            scores["probe of pre-trained features"].append(probed(encoder, train_file, test_file))
            torch.manual_seed(seed)
            encoder.network.init_weights()
            scores["probe of fresh features"].append(probed(encoder, train_file, test_file))
        for name in ways:
            report.note(f"held-out accuracy, {each} labels of each package, {name}", scores[name])
            found[name].append(scores[name])
    x = np.array(LABELS, float)
    curves = []
    for i, (name, rows) in enumerate(found.items(), 1):
        y = 100 * np.array(rows)  # [labels, seeds]
        band = (y.min(1), y.max(1))
        curves.append(Curve(x, y.mean(1), f"series-{i}", "dots", name, band))
    axes = Axis("labels of each package", log=True), Axis("held-out accuracy, %")
    report.chart(
        "accuracy against labels",
        draw(curves, *axes, title="Accuracy", margin=210),
    )
    scratch, tuned, fresh, learned = (np.array(found[name]).mean(1) for name in ways)
    for what, gain in (("fine-tuning beat training from scratch", tuned - scratch), ("probes", learned - fresh)):
        helped = [f"{n} ({100 * points:+.1f} points)" for n, points in zip(LABELS, gain)]
        report.note(f"labels of each package, and by how much pre-training helped: {what}", ", ".join(helped))


def probed(encoder: TextEncoder, train_file: Path, test_file: Path) -> float:
    """Share of the test file's texts that a linear probe of an encoder's mean features names rightly."""
    parts = []
    for file in (train_file, test_file):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        names = sorted({row["label"] for row in rows})
        labels = torch.tensor([names.index(row["label"]) for row in rows])
        parts.append(Features(encoder.embed([row["text"] for row in rows], normalize=False), labels))
    learned, asked = parts
    guesses = linear_probe(learned, int(learned.labels.max()) + 1)(asked.vectors).argmax(1)
    return float((guesses == asked.labels).float().mean())


def some_passages(each: int) -> tuple[Path, Path]:
    """Tables of passages and their packages: `each` of every one to learn from, the same others to be judged by."""
    folder = Path("runs/check/passages")
    files = folder / f"{each}.jsonl", folder / "held_out.jsonl"
    if not all(file.is_file() for file in files):
        from onefold.data.text.labelled.passages import passages

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
