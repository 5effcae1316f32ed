"""How early tokens may leave, found by Learn then Test (CALM, arXiv 2207.07061, section 3.3; arXiv 2110.01052).

    H(λ): with threshold λ, texts lose more than δ on average     λ₁ > λ₂ > … are tested in this order, each at level ε
    the last one that was rejected is taken: P(E[loss] ≤ δ) ≥ 1 - ε over the draw of the texts

Testing one after another and stopping at the first failure costs no correction for having tried many. The bound is for
texts like those that were drawn; they must not be those that the model learned from.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from heapq import heappush, heapreplace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.core.progress import Progress, say
from onefold.data.sources import read
from onefold.infer.generation.early_exit import ExitRule, Measure, fingerprint
from onefold.infer.generation.engine import device_of
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.interop.open import EARLY_EXIT

SEEN = 20_000  # states that a classifier is fitted to, at most
Window = tuple[list[int], list[int]]  # ids to go on from, and those that followed


class Calibration(Config):
    """What is asked for.

    textual: a text loses 1 - ROUGE-L between what is written leaving early and what all layers write. risk: what it
    loses against the text itself, where it is worse than what all layers write.
    """

    delta: Annotated[float, Field(gt=0, lt=1)] = 0.1  # δ: what may be lost, on average over texts
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.05  # ε: how often the whole procedure may be wrong about that
    consistency: Literal["textual", "risk"] = "textual"
    measure: Measure = "softmax"
    texts: Annotated[int, Field(ge=1)] = 200  # documents of the data, as many again to fit a classifier
    prompt: Annotated[int, Field(ge=1)] = 32  # tokens of a piece of each that are given
    tokens: Annotated[int, Field(ge=1)] = 32  # and that are written
    step: Annotated[float, Field(gt=0, le=1)] = 0.05  # between thresholds, from 1 down to 0
    temperature: Annotated[float, Field(ge=0)] = 4.0  # see ExitRule
    batch: Annotated[int, Field(ge=1)] = 32
    seed: int = 0


@dataclass(frozen=True)
class Tried:
    """One threshold: layers a token, mean loss, and the probability of so little where the mean is above δ."""

    threshold: float
    layers: float
    loss: float
    p: float


@dataclass(frozen=True)
class Calibrated:
    """rule None: no threshold is certain to lose so little."""

    rule: ExitRule | None
    tried: list[Tried]  # in order; the last one may have failed
    depth: int

    @property
    def chosen(self) -> Tried | None:
        return next((t for t in self.tried if self.rule and t.threshold == self.rule.threshold), None)


def calibrate(model: Model, folder: str | Path, /, data: str | Path, **settings: Any) -> Calibrated:
    """Find the threshold, print what was tried, and write it beside the model in `folder`.

    Settings are those of Calibration. Raises UserError where nothing can be written there, or no threshold holds.
    """
    config, folder = Calibration.from_dict(settings), Path(folder).expanduser()
    if not isinstance(data, str | Path):
        raise UserError(f"data is a folder or file with texts, not {data}: one of that name is data=./{data}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder to write {EARLY_EXIT} into: onefold export {folder} FOLDER, first")
    parts = 2 if config.measure == "classifier" else 1
    drawn = windows(model, data, parts * config.texts, config)
    more = len(drawn) // 2 if parts == 2 else 0
    if len(drawn) < parts * config.texts:
        config = config.but({"texts": len(drawn) - more})
        fit = f", {more} fit the classifier" if more else ""
        say(f"{data} has {len(drawn)} different texts of that length, each counts once: {config.texts} are tested{fit}")
    with Progress("calibrating", unit="thresholds") as bar:
        found = search(model, drawn[more:], config, drawn[:more], bar.update)
    print(f"{'threshold':>9}{'layers':>9}{'lost':>9}{'p':>11}")
    for one in found.tried:
        mark = "" if one.p <= config.epsilon else "  not certain"
        print(f"{one.threshold:>9.2f}{one.layers:>9.2f}{one.loss:>9.3f}{one.p:>11.2g}{mark}")
    if found.rule is None:
        raise UserError(
            f"no threshold is certain to lose less than delta={config.delta:g}: train with "
            "objective.kind=every_layer, or give more texts=, or a larger delta="
        )
    told = {"rule": found.rule.to_dict(), "weights": fingerprint(model.network), "settings": config.to_dict()}
    told |= {"tried": [asdict(one) for one in found.tried], "depth": found.depth}
    atomic_write(folder / EARLY_EXIT, json.dumps(told, indent=1) + "\n")
    chosen = found.chosen
    print(
        f"threshold {chosen.threshold:.2f}: {chosen.layers:.1f} of {found.depth} layers a token; {chosen.loss:.1%} lost"
    )
    print(f"wrote {folder / EARLY_EXIT}: write with --exit calibrated")
    return found


def search(
    model: Model,
    texts: Sequence[Window],
    config: Calibration,
    others: Sequence[Window] = (),
    tell: Callable[[int], None] = lambda _: None,
) -> Calibrated:
    """Fixed sequence testing over thresholds. others: different texts, by which a classifier is fitted.

    Raises UserError where so few texts could not even show that nothing at all is lost.
    """
    count = len(texts)
    least = math.ceil(math.log(config.epsilon) / math.log(1 - config.delta))
    if count < least:
        raise UserError(f"{count} texts can show nothing at delta={config.delta:g}: at least {least} are needed")
    classifier = fit_classifier(model, others) if config.measure == "classifier" else ()
    shape = {"measure": config.measure, "temperature": config.temperature, "tokens": config.tokens}
    before, speculation = model.early_exit, model.speculation
    model.early_exit, model.speculation = None, None
    tried: list[Tried] = []
    rule = None
    try:
        whole = written(model, texts, config)
        for i in range(int(1 / config.step + 1e-9) + 1):
            candidate = ExitRule(threshold=max(0.0, round(1 - i * config.step, 6)), classifier=classifier, **shape)
            model.leave_early(candidate)
            losses = lost(written(model, texts, config), whole, texts, config.consistency)
            loss, layers = fmean(losses), model.early_exit.mean_layers
            tried.append(Tried(candidate.threshold, layers, loss, p_value(loss, count, config.delta)))
            tell(1)
            if tried[-1].p > config.epsilon:
                break
            rule = candidate
        return Calibrated(rule, tried, model.early_exit.depth)
    finally:
        model.early_exit, model.speculation = before, speculation


def written(model: Model, texts: Sequence[Window], config: Calibration) -> list[list[int]]:
    """What the model writes behind each, greedily, as it is set to."""
    sampling = Sampling(max_new_tokens=config.tokens)
    rows = [model.begin(given, sampling) for given, _ in texts]
    for start in range(0, len(rows), config.batch):
        model.finish(rows[start : start + config.batch], sampling)
    return [row.ids for row in rows]


def lost(
    early: Sequence[list[int]], whole: Sequence[list[int]], texts: Sequence[Window], consistency: str
) -> list[float]:
    """Of each text, 0 to 1; see Calibration."""
    if consistency == "textual":
        return [1 - likeness(*pair) for pair in zip(early, whole, strict=True)]
    return [
        max(0.0, likeness(b, wanted[: len(b)]) - likeness(a, wanted[: len(b)]))
        for a, b, (_, wanted) in zip(early, whole, texts, strict=True)
    ]


def likeness(one: Sequence[int], other: Sequence[int]) -> float:
    """ROUGE-L of tokens: 2 · longest common subsequence / tokens of both (Lin 2004); 1 of two empty texts."""
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    table, columns = np.zeros(len(other) + 1, np.int64), np.asarray(other)
    for token in one:
        table[1:] = np.maximum.accumulate(np.maximum(table[1:], table[:-1] + (columns == token)))
    return 2 * int(table[-1]) / (len(one) + len(other))


def p_value(mean: float, count: int, delta: float) -> float:
    """How probable a mean so small is of `count` losses in [0, 1] whose expectation is above delta, at most.

    The smaller of Hoeffding's bound, in its tighter form by relative entropy, and Bentkus's, e times a binomial tail
    (arXiv 2110.01052, section 3.1).
    """
    if mean >= delta:
        return 1.0
    entropy = (1 - mean) * math.log((1 - mean) / (1 - delta)) + (mean * math.log(mean / delta) if mean else 0.0)
    hits = np.arange(math.ceil(count * mean - 1e-9) + 1)
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in hits]
    tail = np.exp(np.array(logs) + hits * math.log(delta) + (count - hits) * math.log(1 - delta)).sum()
    return float(min(1.0, math.exp(-count * entropy), math.e * tail))


def windows(model: Model, data: str | Path, count: int, config: Calibration) -> list[Window]:
    """A piece of each of `count` different documents, drawn alike from all that are long enough, in an order that means
    nothing; fewer where there are fewer. A second piece of a document would show less than the bound counts on.

    One pass; only documents that may stay are tokenised. Raises UserError where there is none, or the model reads less.
    """
    length, tokenizer = config.prompt + config.tokens, model.tokenizer
    if model.context is not None and length > model.context:
        raise UserError(f"prompt and tokens are {length}, the model's context is {model.context}: give less of them")
    kept: list[tuple[int, Window]] = []  # those with the least hashes; a heap, the greatest first
    inside: set[int] = set()
    for document in read(data):
        drawn = _hash(document.text, config.seed)  # a copy has the same, so it is none more
        if drawn in inside or (len(kept) == count and drawn >= -kept[0][0]):
            continue
        ids = [tokenizer.start, *tokenizer.encode(document.text)]
        if len(ids) < length:
            continue
        start = Random(drawn).randrange(len(ids) - length + 1)
        window = ids[start : start + config.prompt], ids[start + config.prompt : start + length]
        inside.add(drawn)
        if len(kept) < count:
            heappush(kept, (-drawn, window))
        else:
            inside.remove(-heapreplace(kept, (-drawn, window))[0])
    if not kept:
        raise UserError(f"{data} has no text of {length} tokens (prompt + tokens): give longer ones, or less of them")
    return [window for _, window in sorted(kept)]


def _hash(text: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed} {text}".encode(errors="replace"), digest_size=8).digest())


def fit_classifier(model: Model, texts: Sequence[Window], rows: int = 16) -> tuple[float, ...]:
    """A logistic regression on any layer's features: whether the likeliest token there is that of the last layer.

    The same for all layers, as in the paper (section 3.4).
    """
    network, each = model.network, max(1, SEEN // max(1, len(texts) * (len(model.network.blocks) - 1)))
    features, agrees = [], []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for start in range(0, len(texts), rows):
            ids = torch.tensor(
                [[*given, *rest] for given, rest in texts[start : start + rows]], device=device_of(network)
            )
            layers = network.layers(ids)  # [L, B, T, D]
            columns = torch.randperm(ids.shape[1], generator=generator)[:each].to(ids.device)
            layers = layers.index_select(2, columns)
            says = network.head(layers).argmax(-1)
            features.append(layers[:-1].flatten(0, -2).float().cpu())
            agrees.append((says[:-1] == says[-1]).flatten().float().cpu())
    return _regression(torch.cat(features), torch.cat(agrees))


def _regression(x: Float[Tensor, "N D"], y: Float[Tensor, " N"], decay: float = 1e-3) -> tuple[float, ...]:
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    x, w = (x - mean) / scale, torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ w[:-1] + w[-1], y) + decay * w[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weights = w.detach()[:-1] / scale
    return (*weights.tolist(), float(w.detach()[-1] - weights @ mean))
