"""What the recipes on the way to BERT share: fine-tuning on labels, a small setting, and what their checks ask."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onefold.core.errors import UserError
from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from onefold.data.text.labelled.passages import PACKAGES
from onefold.data.text.labelled.text import LabelledTextData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.objectives.classification import Classification
from onefold.recipes.encoders import _encoders as encoders
from onefold.study.check import Report, whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig
from onefold.training.words.run import WordResult

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # a text stands between the first and the third
VOCAB = encoders.VOCAB
CONTEXT = 128
# A check's models have a few hundred thousand parameters: at this size many small steps teach more than few large ones.
# Each pre-trains for about a minute and a quarter of one core; every seed pre-trains and fine-tunes a model of its own.
ROWS = 8
NARROW = {
    "width": 64,
    "depth": 2,
    "embed": {"position": {"context": CONTEXT}},
    "block": {"mixer": {"heads": 2}, "ffn": {"width": 256}},
}
SHAPES: dict[str, dict[str, Any]] = {
    "elmo": {"width": 64, "hidden": 64, "classifier": {"lstm": 32}},
    "ulmfit": {"width": 64, "hidden": 128},
    "gpt": NARROW,
    "bert": NARROW,
}
RATES = {"elmo": 5e-3, "ulmfit": 5e-3, "gpt": 3e-3, "bert": 3e-3}
STEPS = {"elmo": 950, "ulmfit": 1100, "gpt": 1500, "bert": 2200}
LABELS = (4, 16, 64)  # of each class
TUNING = {4: 180, 16: 300, 64: 450}  # steps
EACH = 64  # labels of each class that a landmark alone is judged by


Pretrained = Result | WordResult


def text(data: str, vocab: int, context: int, tokenizer: str | None) -> TextData:
    """Documents to read token by token, with byte-level BPE of their own unless `tokenizer` names one."""
    made = LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=vocab, special=SPECIAL)
    return TextData(sources=(Source(path=data),), context=context, tokenizer=made)


def fine_tuning(labels: str, start: str | None, out: str, changes: dict[str, Any]) -> Run:
    """A run that makes a classifier of the model `start`. `labels`: a table of texts and classes, or "stdlib"."""
    if start is None:
        raise UserError("labels need a model to begin with: give start=RUN, of the same recipe without labels")
    run = Run(
        data=LabelledTextData(path=labels),
        start=start,
        objective=Classification(),
        optimizer=AdamWConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0),
        trainer=TrainerConfig(
            steps=2000, batch=32, schedule=Linear(warmup=0.1), evaluate_every=200, checkpoint_every=500
        ),
        out=Path(out),
    )
    return run.but(changes)


def small(run: Run, tokenizer: str | None, model: dict[str, Any], lr: float) -> Run:
    """The pre-training run with a model of about a million parameters, on 128 tokens."""
    return run.but(
        {
            **{f"model.{name}": value for name, value in model.items()},
            "model.context": CONTEXT,
            "model.vocab": run.model.vocab if tokenizer else VOCAB,
            **({} if tokenizer else {"data.tokenizer.vocab": VOCAB}),
            "data.context": CONTEXT,
            "optimizer.lr": lr,
            "trainer": {"steps": 1000, "batch": 32, "evaluate_every": 250, "checkpoint_every": 250, "clip": 1.0},
            "trainer.schedule": {"kind": "linear", "warmup": 0.1},
        }
    )


def briefly(run: Run, lr: float) -> Run:
    """The fine-tuning run of a small model, in half a minute."""
    trainer = {"steps": 200, "batch": 16, "evaluate_every": 50, "checkpoint_every": 100}
    return run.but({"data.context": CONTEXT, "optimizer.lr": lr, "trainer": trainer})


def store() -> str:
    """Python's standard library as tokens, without the files that passages to judge by are of."""
    folder = Path("runs/check/history/text")
    if not folder.is_dir():
        data = text("stdlib", VOCAB, CONTEXT, None)
        data.but({"held_out": encoders.HELD_OUT, "tokenizer.special": ENCODER_TOKENS}).build(folder)
    return str(folder)


def pretrained(name: str, run: Run) -> list[Result]:
    """The run with a smaller model, briefly, on that text, for each seed; what is finished already is only read."""
    shape = {f"model.{key}": value for key, value in SHAPES[name].items()}
    brief = encoders.briefly(run.but(shape), STEPS[name], ROWS)
    trainer = {"evaluate_batches": 32, "log_every": 10, "checkpoint_every": 250}
    brief = brief.but({"data.sources": [store()], "optimizer.lr": RATES[name], "trainer": trainer})
    return [whole(train(brief.but({"seed": seed, "out": model_folder(name, seed)}))) for seed in encoders.SEEDS]


def model_folder(name: str, seed: int) -> str:
    """Where the model lies that a method pre-trained."""
    return f"runs/check/history/{name}/model/{seed}"


def predicts(report: Report, results: list[Result]) -> None:
    """Tokens of files held out cost less than by how often each occurs."""
    dataset = results[0].run.data.prepare(results[0].out / "data", keep=True)
    counts = np.ones(dataset.tokenizer.size)
    for batch in dataset.evaluation("train", 64):
        counts += np.bincount(batch.targets[batch.weights > 0], minlength=len(counts))
    costs = -np.log(counts / counts.sum())
    asked = np.concatenate([costs[b.targets[b.weights > 0]] for b in dataset.evaluation("held_out", 64)])
    losses = [held_out(result).get("ce", held_out(result)["loss"]) for result in results]
    report.less("nats a token on files held out, against counts of tokens", losses, asked.mean().item())


def held_out(result: Result) -> dict[str, float]:
    """The figures of the last evaluation."""
    return next(record["held_out"] for record in reversed(result.log) if "held_out" in record)


Tuned = Callable[[str, str, int], Run]  # (labels, start, steps) → fine-tuning


def accuracies(
    name: str, pretrained: Sequence[Pretrained], tuned: Tuned, each: int, fresh: bool = False
) -> list[float]:
    """On passages of files held out, after learning from `each` labels of every package, for each seed: its model as
    pre-training left it, or, `fresh`, as it was before."""
    train_file, test_file = encoders.some_passages(each)
    steps, found = TUNING[each], []
    trainer = {"steps": steps, "batch": ROWS, "evaluate_every": steps, "checkpoint_every": steps, "log_every": 10}
    for seed, before in zip(encoders.SEEDS, pretrained, strict=True):
        out = f"runs/check/history/{name}/{'fresh' if fresh else 'tuned'}-{each}/{seed}"
        changes = {"seed": seed, "out": out, "data.validation": str(test_file), "data.context": CONTEXT}
        if fresh:
            read = {"kind": "load", "path": str(before.checkpoint)}
            changes |= {"start": None, "model": before.run.model.to_dict(), "data.tokenizer": read}
        run = tuned(str(train_file), str(before.out), steps).but({**changes, "trainer": trainer})
        found.append(encoders.accuracy(whole(train(run))))
    return found


def learns_from_few_labels(report: Report, name: str, before: list[Result], tuned: Tuned) -> None:
    """Better than chance, which is asserted; and better than the same model from scratch?"""
    found = accuracies(name, before, tuned, EACH)
    chance = 1 - 1 / PACKAGES
    report.less(f"held-out error from {EACH} labels of each package, against chance", [1 - a for a in found], chance)
    report.note(f"held-out accuracy from {EACH} labels of each package", found)
    report.note("the same model from scratch", accuracies(name, before, tuned, EACH, fresh=True))
