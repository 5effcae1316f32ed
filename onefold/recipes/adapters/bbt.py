"""Black-box tuning (Sun et al. 2022, "Black-Box Tuning for Language-Model-as-a-Service", arXiv 2201.03514).

Claim: from 16 texts of each class, CMA-ES in a random subspace of 500 dimensions finds vectors to put before every text
that serve better than a prompt made by hand or examples in the context, and than prompt tuning by gradients; no
gradients and no weights are needed, only log-probabilities.

    onefold train bbt model=runs/gpt2 data=reviews.csv 'words={"pos": "great", "neg": "bad"}'
    onefold tune runs/gpt2 data=reviews.csv                                 # the same, see its --help

Deviations: a decoder reads the text and then the template, where the authors ask RoBERTa to fill in a word; the matrix
is normal with the scale of the authors' later code, where the paper's headline used a uniform one.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from onefold.core.files import atomic_write
from onefold.data.text.labelled.passages import passages
from onefold.data.text.labelled.text import LabelledTextData
from onefold.infer.label_words import LabelWordsConfig, WordScorer, accuracy, in_place_of_tokens, label_loss
from onefold.infer.model import load
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.language import gpt2
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.study.tuning.tune import CALLS as CALLS_LINES
from onefold.study.tuning.tune import Labelled, TuneConfig, TuneResult, few_shots, tune
from onefold.training.run import Result, train


def recipe(model: str = "runs/gpt2", data: str = "stdlib", words: dict[str, str] | None = None) -> TuneConfig:
    """50 tokens, 500 dimensions, population 20, 8,000 calls, 16 texts of each class."""
    return TuneConfig(model=model, data=data, words=words, out=Path("runs/bbt"))


def tiny(model: str = "runs/gpt2", data: str = "stdlib", words: dict[str, str] | None = None) -> TuneConfig:
    """10 tokens, 50 dimensions, 400 calls: a minute for a model of a million parameters."""
    return recipe(model, data, words).but(
        {"prompt.tokens": 10, "prompt.dims": 50, "calls": 400, "characters": 120, "test": 200}
    )


FOLDER = Path("runs/check/bbt")
CLASSES = ("asyncio", "email", "multiprocessing", "xml")
BY_HAND = "{text}\n# This is part of"
MOST = 200  # characters of a passage that the model learns from
CALLS = 240
SEARCHES = {"black-box tuning": {}, "all dimensions": {"prompt.dims": None}, "words": {"prompt": {"kind": "words"}}}
LABELS = {"black-box tuning": "a subspace", "all dimensions": "all of it"}  # in the chart
FIRST = 20  # calls of the first generation
OTHERS = ("by hand", "examples in the context", "by gradients")


def check(report: Report) -> None:
    """The published settings, and what they find for a small model that ends texts with their files' names."""
    published = recipe()
    found = (published.prompt.tokens, published.prompt.dims, published.population, published.calls, published.shots)
    report.equal("tokens, dimensions, population, calls, shots", found, (50, 500, 20, 8000, 16))
    before = _pretrained()
    report.note("parameters of the model", count_parameters(before.run.model))
    scores: dict[str, list[float]] = {way: [] for way in (*OTHERS, *SEARCHES)}
    losses: dict[str, list[np.ndarray]] = {way: [] for way in SEARCHES}
    for seed in encoders.SEEDS:
        base = _settings(str(before.checkpoint), seed)
        for way, changes in SEARCHES.items():
            result = whole(tune(base.but({**changes, "out": str(FOLDER / way.replace(" ", "-") / str(seed))})))
            scores[way].append(result.tuned.value)
            losses[way].append(_best_so_far(result))
        scores["by hand"].append(result.bare.value)
        for way, value in _otherwise(base).items():
            scores[way].append(value)
    for way, curves in losses.items():
        start = [curve[FIRST - 1] for curve in curves]
        report.less(
            f"best loss on the texts learned from, {way}, against the first 20 calls", [c[-1] for c in curves], start
        )
    for way, values in scores.items():
        report.note(f"held-out accuracy of four classes, {way}", values)
    for way in scores:
        if way != "black-box tuning":
            better = sum(ours > theirs for ours, theirs in zip(scores["black-box tuning"], scores[way]))
            report.note(f"seeds with which black-box tuning beat: {way}", f"{better} of {len(encoders.SEEDS)}")
    report.chart("best loss against calls", _drawing(losses))
    for way, paper in zip((*OTHERS, "black-box tuning"), (79.82, 79.79, 68.23, 89.56)):
        report.published(f"accuracy on SST-2, {way}", paper)


def _pretrained() -> Result:
    """A small model of passages of the standard library, each of which ends with the name of the file it is from."""
    texts = FOLDER / "texts.jsonl"
    if not texts.is_file():
        some = [p for p in passages(encoders.HELD_OUT, LabelledTextData().split_seed) if p.split == "train"]
        ended = [f"{p.text[:MOST].rstrip()}\n# end of {p.name.rpartition(':')[0]}\n" for p in some]
        atomic_write(texts, "".join(json.dumps({"text": text}) + "\n" for text in ended))
    trainer = {"steps": 1500, "batch": 16, "evaluate_every": 500, "checkpoint_every": 500}
    block = {"mixer": {"heads": 2}, "ffn": {"width": 256}}
    model = {"width": 64, "depth": 2, "context": 256, "init": "fan_in", "block": block, "embed.position.context": 256}
    changes = {"data.context": 128, "optimizer.lr": 3e-3, "trainer": trainer, "out": str(FOLDER / "model")}
    changes |= {f"model.{name}": value for name, value in model.items()}
    return whole(train(gpt2.tiny(data=str(texts)).but(changes)))


def _settings(model: str, seed: int) -> TuneConfig:
    """Of which package a passage is, told by a template as a person might write it."""
    learn, judge = encoders.some_passages(max(encoders.LABELS))
    words = {name: name for name in CLASSES}
    changes = {"validation": str(judge), "template": BY_HAND, "calls": CALLS, "evaluate_every": 40}
    return tiny(model, str(learn), words).but({**changes, "seed": seed, "device": "cpu"})


def _best_so_far(result: TuneResult) -> np.ndarray:
    lines = [json.loads(line) for line in (result.out / CALLS_LINES).read_text().splitlines()]
    return np.minimum.accumulate([line["loss"] for line in lines if "loss" in line and "chosen_after" not in line])


def _otherwise(config: TuneConfig) -> dict[str, float]:
    """Held-out accuracy from the same few texts, by examples in the context and by gradients."""
    asked, learned, chosen, test = few_shots(config)
    scorer = WordScorer(load(config.model), asked)
    return {
        "examples in the context": _in_context(scorer, asked, learned, test),
        "by gradients": _by_gradients(scorer, config, learned, chosen, test),
    }


def _in_context(scorer: WordScorer, asked: LabelWordsConfig, learned: Labelled, test: Labelled, cut: int = 40) -> float:
    """A text of each class and its word before every text; all of them short, as the model has seen 128 tokens."""
    first = [learned.labels.tolist().index(n) for n in range(len(asked.classes))]
    shown = "".join(asked.put(learned.texts[i][:cut]) + word + "\n" for i, word in zip(first, asked.following()))
    ((scores, _),) = scorer.ask([shown], test.texts)
    return accuracy(scores, test.labels).item()


def _by_gradients(
    scorer: WordScorer, config: TuneConfig, learned: Labelled, chosen: Labelled, test: Labelled, steps: int = 60
) -> float:
    """Prompt tuning (arXiv 2104.08691) from the p0 of the search by Adam; which of two rates and when to stop is chosen
    as the search chooses: by the loss on the texts to choose by."""
    start = config.prompt.build(scorer, [], config.population, config.seed).first
    rows, others, asked = (scorer.rows(part.texts, room=len(start)) for part in (learned, chosen, test))
    best, found = float("inf"), start
    for rate in (1e-2, 1e-1):
        prompt = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([prompt], lr=rate)
        for step in range(1, steps + 1):
            F.cross_entropy(_logits(scorer, prompt, rows), learned.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                loss = label_loss(scorer.prompted(prompt.detach()[None], others)[0], chosen.labels, config.loss).item()
                if loss < best:
                    best, found = loss, prompt.detach().clone()
    return accuracy(scorer.prompted(found[None], asked)[0], test.labels).item()


def _logits(scorer: WordScorer, prompt: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """What the classes' words get behind the prompt and each row, with gradients."""
    n, network = len(prompt), scorer.network
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    vectors = torch.cat((prompt.expand(len(rows), -1, -1), network.embed.token(tokens)), dim=1)
    with in_place_of_tokens(network.embed.token, vectors):
        features = network.features(F.pad(tokens, (n, 0)))
    x, weight, _ = network.readout(features[torch.arange(len(rows)), n + lengths - 1])
    return F.linear(x, weight[scorer.words])


def _drawing(losses: dict[str, list[np.ndarray]]):
    curves = []
    for i, (way, rows) in enumerate(losses.items(), 1):
        y = np.mean(rows, axis=0)[FIRST - 1 :]
        calls = np.arange(FIRST, FIRST + len(y), dtype=float)
        curves.append(Curve(calls, y, f"series-{i}", label=LABELS.get(way, way)))
    title = "Best loss on the texts learned from, mean of three seeds"
    return draw(curves, Axis("calls"), Axis("cross-entropy, nats"), title=title)
