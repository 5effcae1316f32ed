"""What the recipes of experts share: a synthetic world of many facts, small models of it, and what to ask of them.

    #aXcbQ…     the sign names one of 32 languages; in each, one of two letters follows a letter, as a coin falls

There is little to understand and much to know, 32 · 52 pairs of letters, and no text is read twice: so parameters are
what is short, as they are for models that read the world's text once. Nothing here says anything about language.
"""

import json
import string
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch

from onefold.core.config import Config
from onefold.core.files import atomic_write
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.data.text.tokenizers.tokenizer import END_OF_TEXT
from onefold.models.transformer import BlockConfig, DecoderConfig, count_parameters
from onefold.nn.attention import AttentionConfig
from onefold.nn.position import RotaryConfig
from onefold.nn.sparse.experts import Experts
from onefold.recipes._miniature import SEEDS
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig

FOLDER = Path("runs/check/experts")
SIGNS, LETTERS = string.punctuation, string.ascii_letters
LENGTH = 14  # letters of a text: with sign and end, four of them fill a row
TEXTS = {"read": 30_000, "held-out": 400}
STEPS, EVERY = 400, 25
INNER = 64  # units of a feed-forward layer that a token sees
RATE = 0.02  # tried by hand with one seed: of 0.003, 0.01, 0.02 and 0.03 the best, dense or with 4 or 16 experts


def world() -> Path:
    """A store of the world's texts, made once."""
    store = FOLDER / "world"
    if not store.exists():
        read, held = (_texts(FOLDER / f"{name}.jsonl", count) for name, count in TEXTS.items())
        letters = TrainBPE(vocab=257, special=(END_OF_TEXT,))
        TextData(sources=(Source(path=str(read)),), validation=str(held), tokenizer=letters).build(store)
    return store


def _texts(file: Path, count: int) -> Path:
    languages, random = Random("languages"), Random(file.stem)
    follows = {sign + letter: languages.choices(LETTERS, k=2) for sign in SIGNS for letter in LETTERS}
    rows = []
    for _ in range(count):
        text = random.choice(SIGNS) + random.choice(LETTERS)
        while len(text) <= LENGTH:
            text += random.choice(follows[text[0] + text[-1]])
        rows.append(json.dumps({"text": text}) + "\n")
    atomic_write(file, "".join(rows))
    return file


def small(ffn: Config) -> Run:
    """Two layers of 32 channels, on 1,024 tokens of the world at a time: ten seconds."""
    block = BlockConfig(mixer=AttentionConfig(heads=4, position=RotaryConfig()), ffn=ffn)
    return Run(
        data=TextData(sources=(Source(path=str(FOLDER / "world")),), context=64),
        model=DecoderConfig(vocab=257, width=32, depth=2, context=64, init="fan_in", block=block),
        optimizer=AdamWConfig(lr=RATE, weight_decay=0.0),
        trainer=TrainerConfig(
            steps=STEPS, batch=16, schedule=Linear(warmup=0.05, final=0.1), evaluate_every=EVERY, checkpoint_every=STEPS
        ),
    )


def trained(kinds: Mapping[str, Run]) -> dict[str, list[Result]]:
    """A run of each kind with each seed, all under one roof: what another check has trained already is only read."""
    world()
    found: dict[str, list[Result]] = {}
    for kind, run in kinds.items():
        folder = FOLDER / kind.replace(",", "").replace(" ", "-")
        found[kind] = [whole(train(run.but({"seed": seed, "out": str(folder / str(seed))}))) for seed in SEEDS]
    return found


def active(config: Config) -> int:
    """Parameters that a token is multiplied with."""
    with torch.device("meta"):
        layers = [module for module in config.build().modules() if isinstance(module, Experts)]
    unread = 0
    for layer in layers:
        experts = len(layer.router.weight)
        each = sum(p.numel() for p in layer.experts.parameters()) // experts
        unread += (experts - layer.router.config.needs()) * each
    return count_parameters(config) - unread


def scaling(report: Report, found: Mapping[str, list[Result]], on: str) -> None:
    """What it takes the others to reach the first kind's loss, in steps and in time, and a chart of all losses.

    on: what they were trained on.
    """
    for kind, results in found.items():
        report.note(f"{on}: held-out loss, {kind}", [final(result) for result in results])
    dense, *mixtures = found
    took = paces({kind: results[0].run for kind, results in found.items()})
    for kind in mixtures:
        steps = [reached(a, final(b)) for a, b in zip(found[kind], found[dense], strict=True)]
        done = [step for step in steps if step is not None]
        report.note(f"{on}: seeds of {len(SEEDS)} that reach the dense model's loss, {kind}", len(done))
        if len(done) == len(steps):
            shares = [step / found[dense][0].step for step in done]
            report.note(f"{on}: its share of the steps, {kind}", shares)
            report.note(f"{on}: its share of the time, {kind}", [s * took[kind] / took[dense] for s in shares])
    name = f"{on}: held-out loss against steps"
    axes = Axis("steps"), Axis("held-out loss, nats per token")
    report.chart(name, draw(curves(found), *axes, title=name, margin=150))


def paces(runs: Mapping[str, Run], rounds: int = 8) -> dict[str, float]:
    """Seconds of a step of each kind: the least of several in turn, as other work of the machine should not count."""
    models = {kind: run.model.build().train() for kind, run in runs.items()}
    updates = {kind: run.optimizer.build(models[kind]) for kind, run in runs.items()}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _, (kind, run) in product(range(rounds), runs.items()):
        tokens = torch.randint(run.model.vocab, (run.trainer.batch, run.data.context))
        began = time.perf_counter()
        models[kind](tokens).logsumexp(-1).mean().backward()
        updates[kind].step()
        updates[kind].zero_grad()
        times[kind].append(time.perf_counter() - began)
    return {kind: min(some) for kind, some in times.items()}


def curves(found: Mapping[str, list[Result]]) -> list[Curve]:
    """Held-out losses, means over seeds, without the first one."""
    made = []
    for i, (kind, results) in enumerate(found.items(), 1):
        steps = [step for step, _ in losses(results[0])][1:]
        means = np.mean([[loss for _, loss in losses(result)] for result in results], 0)[1:]
        made.append(Curve(np.array(steps), means, f"series-{i}", label=kind))
    return made


def losses(result: Result) -> list[tuple[int, float]]:
    """(step, held-out loss)."""
    return [(record["step"], record["held_out"]["loss"]) for record in result.log if "held_out" in record]


def final(result: Result) -> float:
    return losses(result)[-1][1]


def mean(result: Result, figure: str, last: int = 0) -> float:
    """Of a figure of the log over all steps, or the last so many."""
    return fmean(record[figure] for record in result.log[-last:])


def reached(result: Result, loss: float) -> float | None:
    """The step at which a held-out loss was first as low as `loss`, between evaluations by a line; None: never."""
    before = None
    for step, value in losses(result):
        if value <= loss:
            return step if before is None else before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = step, value
    return None


def loads(result: Result) -> list[list[float]]:
    """The share of the assignments that each expert got in the last evaluation, by layer."""
    last = next(record["held_out"] for record in reversed(result.log) if "held_out" in record)
    return [value for name, value in last.items() if name.startswith("load/")]


def busy(report: Report, results: Sequence[Result]) -> None:
    """Whether experts are used alike."""
    shares = [load for result in results for load in loads(result)]
    idle = max(sum(share == 0 for share in load) for load in shares)
    report.note(f"experts of {len(shares[0])} that read nothing held out, most of all layers and seeds", idle)
    report.note(
        "busiest expert, times its even share, mean over layers and seeds", fmean(max(x) * len(x) for x in shares)
    )
