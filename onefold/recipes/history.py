"""The road to pre-training in one plot: what word vectors, ELMo, ULMFiT, GPT and BERT make of few labels.

Claim: the more of a model is pre-trained, and the more of it looks at context, the fewer labels a task needs.

All five learn from the same text, Python's standard library, for about the same time on one core, and are then tuned
on the same labelled passages, each in the way of its paper: word vectors and ELMo's two language models stay as they
are under an LSTM of the task's own; ULMFiT thaws layer by layer; GPT goes on predicting tokens; BERT gets a new layer.
Passages of files that none has seen judge them. Beside them stands GPT's model without pre-training.

    onefold check history                         # the plot; stopped, it goes on where it was
    onefold train history method=elmo             # one of the pre-trainings

Miniatures say nothing about the systems of the papers, which had a thousand times the parameters and a million times
the time: what wins in seconds is what learns fastest, not what learns most.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
from markupsafe import Markup

from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.text.documents import Source, TextData
from onefold.recipes.encoders import _transfer as transfer
from onefold.recipes.encoders import roberta, text_classifier
from onefold.recipes.encoders._encoders import SEEDS
from onefold.recipes.language import elmo, gpt, ulmfit
from onefold.recipes.words import word2vec
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, Level, draw
from onefold.training.log import read_log
from onefold.training.run import Run
from onefold.training.words import run as words

EPOCHS = 30  # of word2vec's, in the time that the others have
METHODS: dict[str, Callable[..., Run]] = {
    "elmo": elmo.tiny,
    "ulmfit": ulmfit.tiny,
    "gpt": gpt.tiny,
    "bert": roberta.tiny,
}
NAMES = {"word2vec": "word2vec", "elmo": "ELMo", "ulmfit": "ULMFiT", "gpt": "GPT", "bert": "BERT"}


def recipe(method: str = "gpt", data: str = "stdlib") -> Run:
    """The small pre-training run of a method: elmo, ulmfit, gpt or bert (which is RoBERTa's way of it)."""
    if method not in METHODS:
        raise UserError(f"no method named {method}; there are {', '.join(METHODS)}, and the recipe word2vec")
    return METHODS[method]().but({"data.sources": [data], "out": f"runs/history/{method}"})


def tiny(method: str = "gpt", data: str = "stdlib") -> Run:
    """The same: it is small."""
    return recipe(method, data)


def check(report: Report) -> None:
    """All are better than chance with 64 labels of each package; the rest is told, as a plot."""
    found = {name: accuracy(name, report) for name in NAMES}
    found["from scratch"] = [
        transfer.accuracies("gpt", transfer.pretrained("gpt", gpt.tiny()), gpt.tuned, each, fresh=True)
        for each in transfer.LABELS
    ]
    for name, rows in found.items():
        label = NAMES.get(name, name)
        for each, values in zip(transfer.LABELS, rows):
            report.note(f"held-out accuracy, {each} labels of each package, {label}", values)
    most, chance = transfer.LABELS[-1], 1 - 1 / transfer.PACKAGES
    for name, label in NAMES.items():
        errors = [1 - value for value in found[name][-1]]
        report.less(f"held-out error with {most} labels, {label}, against chance", errors, chance)
    report.chart("accuracy against labels", plot(found))
    helped = [NAMES[name] for name in NAMES if fmean(found[name][0]) > fmean(found["from scratch"][0])]
    report.note(f"better than from scratch with {transfer.LABELS[0]} labels", ", ".join(helped) or "none of them")


def accuracy(name: str, report: Report) -> list[list[float]]:
    """[labels, seeds]; how long pre-training took is reported."""
    if name == "word2vec":
        before, tuned = word_vectors()
    else:
        before = transfer.pretrained(name, METHODS[name]())
        tuned = {"elmo": elmo.tuned, "ulmfit": ulmfit.tuned, "gpt": gpt.tuned, "bert": as_bert}[name]
    seconds = [round(read_log(result.out / "log.jsonl")[-1]["seconds"]) for result in before]
    report.note(f"seconds of pre-training by the clock, {NAMES[name]}", seconds)
    return [transfer.accuracies(name, before, tuned, each) for each in transfer.LABELS]


def word_vectors() -> tuple[list[words.WordResult], transfer.Tuned]:
    """As wide as the others' models, of the words of the same text."""
    store = Path(transfer.store())
    file = store.with_name("words.jsonl")
    if not file.is_file():
        texts = TextData(sources=(Source(path=str(store)),)).prepare(store).text("train")
        atomic_write(file, "".join(json.dumps({"text": document.text}) + "\n" for document in texts))
    changes = {"data.sources": [str(file)], "model": {"width": 64, "epochs": EPOCHS}, "trainer.threads": 1}
    run = word2vec.tiny().but({**changes, "trainer.checkpoint_every": 500})
    runs = [run.but({"seed": seed, "out": transfer.model_folder("word2vec", seed)}) for seed in SEEDS]
    return [whole(words.train(run)) for run in runs], over_words


def as_bert(labels: str, start: str, steps: int) -> Run:
    return text_classifier.tiny(data=labels, start=start).but({"optimizer.lr": 2e-3})


def over_words(labels: str, start: str, steps: int) -> Run:
    """An LSTM over vectors that stay as they are."""
    return as_bert(labels, start, steps).but({"optimizer": {"lr": 5e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}})


def plot(found: dict[str, list[list[float]]]) -> Markup:
    """Accuracy in per cent against labels of each package, a curve each, with all seeds in its band."""
    x, curves = np.array(transfer.LABELS, float), []
    for i, (name, rows) in enumerate(found.items(), 1):
        y = 100 * np.array(rows)
        color, style = ("muted", "dashed") if name not in NAMES else (f"series-{i}", "dots")
        curves.append(Curve(x, y.mean(1), color, style, NAMES.get(name, name), (y.min(1), y.max(1))))
    axes = Axis("labels of each of 8 packages", log=True, text="{:.0f}".format), Axis("held-out accuracy, %")
    chance = Level("chance", 100 / transfer.PACKAGES)
    return draw(curves, *axes, [chance], title="Accuracy against labels, after pre-training for the same time")
