"""What the check of adaptive computation asks of early exit and of drafts, on a small world with easy and hard letters.

    DbcdeBfghiEfghi…     capital letters are numbers mod 7; each follows from the two before it, but for one in ten,
                         and every number is spelled on by four small letters that follow from the last letter alone

So four letters of five are easy, and a fifth takes two earlier places and a table to know. Every layer learns to answer
(objectives/every_layer.py). Nothing here says anything about language.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.files import atomic_write
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.data.text.tokenizers.tokenizer import END_OF_TEXT
from onefold.infer.evaluation.calibrate import Calibration, Window, lost, search, windows, written
from onefold.infer.generation.early_exit import ExitRule
from onefold.infer.generation.sampling import Sampling, probabilities
from onefold.infer.generation.speculative import drawn, shallow, verify
from onefold.infer.model import Model, load
from onefold.models import families
from onefold.objectives.every_layer import EveryLayer
from onefold.recipes._miniature import SEEDS
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

FOLDER = Path("runs/check/adaptive/early-exit")
NUMBERS, WORDS, RULE = 7, ("bcde", "fghi", "jklm"), 0.9
ROUNDS = 12  # numbers of a text
TEXTS = {"read": 8000, "held-out": 200, "calibration": 300, "fresh": 300}
DEPTH, STEPS = 6, 200
ASKED = Calibration(delta=0.1, epsilon=0.05, texts=80, prompt=12, tokens=30, step=0.1, batch=80)
SHOWN = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)  # thresholds in the picture
DRAFTS = (1, 2, 4, 8)  # tokens proposed at once, by the first layer
FLAT = Sampling(temperature=2.0)  # or the model would be sure of most letters


@dataclass(frozen=True)
class Seen:
    """Of one seed."""

    rule: ExitRule
    lost: float  # on fresh texts, by the threshold that was found
    layers: float  # a token, there
    easy: float  # layers that small letters took…
    hard: float  # …and capital ones


def rows(report: Report) -> None:
    """Early exit and drafts, over three seeds; resumable."""
    models = [load(whole(train(run(FOLDER, seed))).out) for seed in SEEDS]
    left_early(report, models)
    p = min(pairs_apart(model, 4000, seed) for seed, model in enumerate(models))
    report.less("pairs of letters with a draft, χ² test against the model's own: 1 - p, worst seed", 1 - p, 0.9999)
    found = {count: [proposals(model, count, seed) for seed, model in enumerate(models)] for count in DRAFTS}
    report.note("share of the first layer's proposals accepted", [alpha for alpha, _ in found[1]])
    for count, some in found.items():
        expected = [tokens_a_pass(alpha, count) for alpha, _ in some]
        report.note(f"letters a pass at {count} proposed: measured, of expected", [
            tokens / wanted for (_, tokens), wanted in zip(some, expected, strict=True)
        ])  # fmt: skip
    report.chart("letters a pass against how many are proposed", _passes(found))


def left_early(report: Report, models: list[Model]) -> None:
    """What calibrated thresholds lose and save, of the models for which one was found."""
    found = [_seen(model) for model in models]
    seen = [one for one in found if one is not None]
    if not report.equal("models for which a threshold was found, of all seeds", len(seen), len(models)) and not seen:
        return
    report.note("thresholds that early exit was calibrated to", [s.rule.threshold for s in seen])
    report.note(f"layers a token of {DEPTH}, left early as calibrated", [s.layers for s in seen])
    report.less("lost to leaving early on fresh texts, calibrated", [s.lost for s in seen], ASKED.delta)
    report.note("lost to leaving early, worst seed", max(s.lost for s in seen))
    report.less("layers that easy letters took, against hard ones", [s.easy for s in seen], [s.hard for s in seen])
    report.note("layers that hard letters took", [s.hard for s in seen])
    first = next(i for i, one in enumerate(found) if one is not None)
    report.chart("layers a token against what is lost, leaving early", _tradeoff(models[first], seen[0]))


def text(random: Random) -> str:
    """One text of the world."""
    one, two, said = random.randrange(NUMBERS), random.randrange(NUMBERS), []
    for _ in range(ROUNDS):
        said.append(chr(ord("A") + one) + WORDS[one % len(WORDS)])
        follows = (3 * one + two + 1) % NUMBERS
        one, two = two, follows if random.random() < RULE else random.randrange(NUMBERS)
    return "".join(said)


def _texts(name: str, folder: Path = FOLDER) -> Path:
    file, random = folder / f"{name}.jsonl", Random(name)
    if not file.is_file():
        atomic_write(file, "".join(json.dumps({"text": text(random)}) + "\n" for _ in range(TEXTS[name])))
    return file


def run(folder: Path, seed: int) -> Run:
    """A small model of the world, whose texts are written into the folder."""
    shape = {"vocab": 257, "width": 48, "depth": DEPTH, "context": 64, "tied": True}
    return Run(
        data=TextData(
            sources=(Source(path=str(_texts("read", folder))),),
            validation=str(_texts("held-out", folder)),
            tokenizer=TrainBPE(vocab=257, special=(END_OF_TEXT,)),
            context=61,
        ),
        model=families.llama2().but({**shape, "block.mixer.heads": 4, "block.ffn.width": 96}),
        objective=EveryLayer(),
        optimizer=AdamWConfig(lr=5e-3, weight_decay=0.0),
        trainer=TrainerConfig(
            steps=STEPS, batch=16, schedule=Linear(warmup=0.1), evaluate_every=STEPS, evaluate_batches=4
        ),
        seed=seed,
        out=str(folder / str(seed)),
    )


def _seen(model: Model) -> Seen | None:
    """None: no threshold is certain to lose as little as is asked."""
    rule = search(model, windows(model, _texts("calibration"), ASKED.texts, ASKED), ASKED).rule
    if rule is None:
        return None
    fresh = windows(model, _texts("fresh"), ASKED.texts, ASKED)
    return Seen(rule, *_lost(model, rule, fresh), *_by_letter(model, rule, fresh))


def _rule(threshold: float) -> ExitRule:
    return ExitRule(threshold=threshold, temperature=ASKED.temperature, tokens=ASKED.tokens)


def _lost(model: Model, rule: ExitRule, texts: list[Window]) -> tuple[float, float]:
    """(mean loss, layers a token) of leaving by this rule."""
    model.leave_early(None)
    all_layers = written(model, texts, ASKED)
    model.leave_early(rule)
    loss = fmean(lost(written(model, texts, ASKED), all_layers, texts, ASKED.consistency))
    layers = model.early_exit.mean_layers
    model.leave_early(None)
    return loss, layers


def _by_letter(model: Model, rule: ExitRule, texts: list[Window], count: int = 12) -> tuple[float, float]:
    """Layers that small and capital letters took, of a few texts written one by one."""
    model.leave_early(rule)
    took: dict[bool, list[int]] = {False: [], True: []}
    for given, _ in texts[:count]:
        row = model.begin(given, Sampling(max_new_tokens=ASKED.tokens))
        before = model.early_exit.layers
        for _ in model.run([row], Sampling(max_new_tokens=ASKED.tokens)):
            if len(row.ids) > 1:  # the first letter is the prompt's, which all layers read
                took[model.tokenizer.decode(row.ids[-1:]).isupper()].append(model.early_exit.layers - before)
            before = model.early_exit.layers
    model.leave_early(None)
    return fmean(took[False]), fmean(took[True])


@torch.no_grad()
def pairs_apart(model: Model, count: int, seed: int) -> float:
    """The probability of pairs of letters at least as far from the model's own distribution as those that are drawn
    with a draft, its first layer, of which two are proposed."""
    network, random = model.network, torch.Generator().manual_seed(seed)
    prompt = torch.tensor([model.ids("DbcdeBfghi")])
    draft = shallow(network, 1)
    proposed, q = _proposed(draft, prompt.expand(count, -1), 2, random)
    p = _distributions(network, torch.cat((prompt.expand(count, -1), proposed), 1), 3)
    kept, following = verify(p, q, proposed, torch.rand(count, 3, generator=random))
    first = torch.where(kept > 0, proposed[:, 0], following)
    again = drawn(_distributions(network, torch.cat((prompt.expand(count, -1), first[:, None]), 1), 1)[:, 0],
                  torch.rand(count, generator=random))  # fmt: skip
    second = torch.where(kept > 1, proposed[:, 1], torch.where(kept == 1, following, again))
    V = p.shape[-1]
    one = _distributions(network, prompt, 1)[0, 0]
    two = _distributions(network, torch.cat((prompt.expand(V, -1), torch.arange(V)[:, None]), 1), 1)[:, 0]
    return apart((first * V + second).bincount(minlength=V * V), (one[:, None] * two).flatten())


def apart(found: Int[Tensor, " K"], wanted: Float[Tensor, " K"]) -> float:
    """Pearson's χ² test: how probable counts at least this far from probabilities are. What is expected fewer than five
    times is one class."""
    expected = wanted.double() / wanted.double().sum() * found.sum()
    rare = expected < 5
    counts, means = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (found.double(), expected))
    counts, means = counts[means > 0], means[means > 0]
    statistic = ((counts - means).square() / means).sum()
    return float(torch.special.gammaincc(torch.tensor((len(means) - 1) / 2, dtype=torch.float64), statistic / 2))


@torch.no_grad()
def proposals(model: Model, count: int, seed: int, texts: int = 200) -> tuple[float, float]:
    """(share of proposals accepted among those that were looked at, letters a pass) where the first layer proposes so
    many, at places of fresh texts."""
    random = torch.Generator().manual_seed(seed)
    settings = ASKED.but({"texts": texts, "seed": seed})
    ids = torch.tensor([given for given, _ in windows(model, _texts("fresh"), texts, settings)])
    proposed, q = _proposed(shallow(model.network, 1), ids, count, random)
    p = _distributions(model.network, torch.cat((ids, proposed), 1), count + 1)
    kept, _ = verify(p, q, proposed, torch.rand(texts, count + 1, generator=random))
    looked_at = (kept + 1).clamp(max=count).sum()
    return float(kept.sum() / looked_at), float(kept.double().mean() + 1)


def tokens_a_pass(alpha: float, count: int) -> float:
    """What is expected where each proposal is accepted with probability α (arXiv 2211.17192, equation 1)."""
    return count + 1.0 if alpha >= 1 else (1 - alpha ** (count + 1)) / (1 - alpha)


def _proposed(draft: nn.Module, ids: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [N, γ], and the distributions [N, γ, V] that they were drawn from."""
    said, start = [], ids.shape[1]
    for _ in range(count):
        said.append(_distributions(draft, ids, 1)[:, 0])
        ids = torch.cat((ids, drawn(said[-1], torch.rand(len(ids), generator=random))[:, None]), 1)
    return ids[:, start:], torch.stack(said, 1)


def _distributions(network: nn.Module, ids: Tensor, last: int) -> Float[Tensor, "N last V"]:
    """Behind each of the last so many tokens."""
    logits = network.head(network.features(ids)[:, -last:])
    return probabilities(logits.flatten(0, 1), FLAT).view(logits.shape)


def _tradeoff(model: Model, seen: Seen):
    fresh = windows(model, _texts("fresh"), ASKED.texts, ASKED)
    points = [_lost(model, _rule(threshold), fresh)[::-1] for threshold in SHOWN]
    points = np.array(sorted([*points, (DEPTH, 0.0)]))  # all layers lose nothing
    curves = [
        Curve(points[:, 0], points[:, 1], "series-1", "dots", "thresholds"),
        Curve(np.array([seen.layers]), np.array([seen.lost]), "series-2", "points", "calibrated"),
    ]
    axes = (
        Axis(f"layers a token, of {DEPTH}", low=1, high=DEPTH),
        Axis("lost: 1 - ROUGE-L to what all layers write", low=0),
    )
    return draw(curves, *axes, title="What leaving early costs", margin=130)


def _passes(found: dict[int, list[tuple[float, float]]]):
    counts = np.array(list(found))
    measured = np.array([fmean(tokens for _, tokens in some) for some in found.values()])
    expected = np.array([fmean(tokens_a_pass(alpha, n) for alpha, _ in some) for n, some in found.items()])
    curves = [
        Curve(counts, measured, "series-1", "dots", "measured"),
        Curve(counts, expected, "series-2", "dashed", "expected"),
    ]
    return draw(curves, Axis("letters proposed at once"), Axis("letters a pass", low=1), title="Drafts", margin=96)
