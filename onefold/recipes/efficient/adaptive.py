"""Adaptive computation: mixture of depths (arXiv 2404.02258), Universal Transformer and ACT (1807.03819, 1603.08983).

    onefold train adaptive data=notes/                          # every other block, an eighth of the tokens
    onefold train adaptive data=notes/ kind=universal           # one block, again and again, until a token halts
    onefold train adaptive data=notes/ start=runs/llama2 …      # from a dense model of the same shape

Claim: not every token needs as much arithmetic. Where a learned router lets an eighth of the tokens through every other
block, a model reaches a dense one's loss with fewer operations (mixture of depths); a block that is repeated learns how
often each token needs it (Universal Transformer). Easy input costs less.

Deviations: mixture of depths names its sizes by parameters and does not publish their shapes; this one of 213 million
is a Llama of 14 layers, near its optimum of 220 for 6e18 operations. Its router has a bias, so that 0 can tell tokens
apart. The Universal Transformer is the authors' base as a language model; their code adds up a token's states by a
running interpolation, ACT's paper by the mean that is used here. Neither data nor schedules are theirs.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.batch import TokenBatch
from onefold.data.text.documents import LoadTokenizer, TextData, TrainBPE
from onefold.infer.generation.engine import evaluating
from onefold.infer.model import load
from onefold.models import families
from onefold.models.embed import EmbedConfig
from onefold.models.transformer import BlockConfig, DecoderConfig, count_parameters
from onefold.nn.adaptive.repeat import RepeatConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.objectives.language import NextToken
from onefold.recipes import _miniature as miniature
from onefold.recipes._miniature import SEEDS
from onefold.recipes.efficient import _early_exit
from onefold.recipes.language import llama2
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.estimate import count_flops
from onefold.training.run import Result, Run, train

Kind = Literal["mixture_of_depths", "universal"]
FOLDER = Path("runs/check/adaptive")
STEPS, EVERY = 160, 20
LEARNING, BEGINNING = 200, 10  # steps in the world of easy and hard letters; letters of a text that nobody could know
EVERY_OTHER = [{}, {"route": {}}]


def recipe(
    data: str = "stdlib", kind: Kind = "mixture_of_depths", tokenizer: str | None = None, start: str | None = None
) -> Run:
    """start: a model of the same shape without routes, whose blocks this one begins with."""
    model = universal() if kind == "universal" else mixture_of_depths()
    text = LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=model.vocab)
    changes = {"data.context": model.context, "data.tokenizer": text.to_dict(), "trainer.batch": 128, "start": start}
    return llama2.recipe(data).but({"model": model.to_dict(), "out": f"runs/{kind}", **changes})


def tiny(data: str = "stdlib", kind: Kind = "mixture_of_depths", start: str | None = None) -> Run:
    """A million parameters: four blocks, two of which an eighth of the tokens pass; or one, up to six times."""
    run = llama2.tiny(data).but({"out": f"runs/{kind}", "start": start})
    if kind == "mixture_of_depths":
        return run.but({"model.pattern": EVERY_OTHER})
    return run.but(REPEATED | {"model.block.ffn.width": 1280})


# Attention has positions of its own. Tokens' vectors are as large as the signal of a step, or it would drown them.
# With a ponder weight of 0.01, hardly any token of real text saves a step of four; with 0.03, two, at the same loss.
REPEATED: dict[str, Any] = {
    **{"model.depth": 1, "model.init": "fan_in", "model.embed.scaled": True},
    "model.repeat": {"steps": 6, "positions": False, "halting": {"bias": -1.0, "ponder": 0.03}},
}


def mixture_of_depths() -> DecoderConfig:
    """A Llama of 213 million parameters, of which every other block lets an eighth of the tokens through."""
    shape = {"vocab": 32000, "width": 1024, "depth": 14, "context": 2048, "block.mixer.heads": 16, "tied": True}
    return families.llama2().but({**shape, "block.ffn.width": 2816, "pattern": EVERY_OTHER})


def universal() -> DecoderConfig:
    """The authors' base: 1,024 channels, 16 heads, six steps at most, norms after each sum."""
    return DecoderConfig(
        vocab=32000,
        width=1024,
        depth=1,
        context=1024,
        embed=EmbedConfig(scaled=True, dropout=0.1),
        block=BlockConfig(
            norm=LayerNormConfig(),
            mixer=AttentionConfig(heads=16, dropout=0.1),
            ffn=MLPConfig(width=4096, activation="relu"),
            residual="post",
            dropout=0.1,
        ),
        repeat=RepeatConfig(steps=6),
        norm=None,
    )


def check(report: Report) -> None:
    """Sizes and operations; caches are exact; loss against operations; what easy and hard passages cost."""
    block = count_parameters(universal().but({"vocab": 1})) - 2 * 1024 - 1  # without its token and what halts
    report.equal(
        "numbers in the block of a Universal Transformer", block, 4 * 1024**2 + 2 * 1024 * 4096 + 4096 + 5 * 1024
    )
    more = count_parameters(mixture_of_depths()) - count_parameters(mixture_of_depths().but({"pattern": []}))
    report.equal("parameters that routes add, of 213 million", more, 7 * (1024 + 1))
    for kind in ("mixture_of_depths", "universal"):
        miniature.cache_is_exact(report, tiny(kind=kind).model)
    runs = against_flops()
    costs = {kind: flops(run.model) for kind, run in runs.items()}
    plain, mixture = runs["plain"].model, runs["mixture of depths"].model
    half, T = plain.but({"depth": 2}), plain.context
    short = (flops(plain.but({"context": T // 8})) - flops(half.but({"context": T // 8}))) * T // 8
    report.equal(
        "operations of a row: two blocks that read it, and two that read an eighth",
        flops(mixture) * T,
        flops(half) * T + short,
    )
    found = trained(runs)
    best = [final(result) for result in found["plain"]]
    for kind, results in found.items():
        report.note(f"held-out loss, {kind}", [final(result) for result in results])
        report.note(f"operations of training a token, of the plain model's, {kind}", costs[kind] / costs["plain"])
        report.less(f"held-out loss, {kind}, against the first", max(map(final, results)), losses(results[0])[0][1])
        if kind != "plain":
            reached = [cost(r, loss, costs[kind] / costs["plain"]) for r, loss in zip(results, best, strict=True)]
            done = [share for share in reached if share is not None]
            report.note(f"seeds of {len(SEEDS)} that reach the plain model's loss, {kind}", len(done))
            if done:
                report.note(f"operations that they take, of the plain model's, {kind}", done)
    routed = found["mixture of depths"]
    report.note("predictor right about a held-out token", [held_out(r)["predicted"] for r in routed])
    report.note("share of held-out tokens that go through", [held_out(r)["passed"] for r in routed])
    report.note(
        "steps that a held-out token takes, of at most 4",
        [held_out(r)["steps_taken"] for r in found["universal"]],
    )
    curves = []
    for i, (kind, results) in enumerate(found.items(), 1):
        points = [(s[0][0] * costs[kind] * 1024 / 1e12, fmean(v for _, v in s)) for s in zip(*map(losses, results))]
        curves.append(Curve(*np.array(points[1:]).T, f"series-{i}", label=kind))
    axes = Axis("operations of training, 10¹²"), Axis("held-out loss, nats per token")
    report.chart("held-out loss against operations", draw(curves, *axes, title="Held-out loss", margin=150))
    easy_and_hard(report)
    _early_exit.rows(report)


def against_flops() -> dict[str, Run]:
    """The same tokens for all but a mixture of depths, which reads more for the same operations."""
    small = {
        **{"model.width": 64, "model.depth": 4, "model.context": 64, "data.context": 64},
        **{"model.init": "fan_in", "model.embed.scaled": True},
        **{"model.vocab": 512, "model.block.ffn.width": 172, "trainer.batch": 16, "trainer.evaluate_every": EVERY},
        **{"trainer.steps": STEPS, "trainer.checkpoint_every": STEPS},
    }
    store = FOLDER / "text"
    if not store.exists():  # read once, not by every run
        TextData(tokenizer=TrainBPE(vocab=512)).build(store)
    plain = llama2.tiny(str(store)).but(small)
    mixture = plain.but({"model.pattern": EVERY_OTHER})
    longer = STEPS * flops(plain.model) / flops(mixture.model)
    repeated = plain.but(REPEATED).but({"model.repeat.steps": 4})
    return {
        "plain": plain,
        "mixture of depths": mixture.but({"trainer.steps": EVERY * round(longer / EVERY)}),
        "universal": repeated,
    }


def trained(runs: Mapping[str, Run]) -> dict[str, list[Result]]:
    """A run of each kind with each seed."""
    found: dict[str, list[Result]] = {}
    for kind, run in runs.items():
        folder = FOLDER / kind.replace(",", "").replace(" ", "-")
        found[kind] = [whole(train(run.but({"seed": seed, "out": str(folder / str(seed))}))) for seed in SEEDS]
    return found


def flops(model: DecoderConfig) -> float:
    """Operations of training a token, forward and backward, of a text as long as the context."""
    tokens = torch.zeros(1, model.context, dtype=torch.long)
    batch = TokenBatch(tokens=tokens, targets=tokens, weights=torch.ones(1, model.context))
    return count_flops(model, NextToken().build(), batch)


def losses(result: Result) -> list[tuple[int, float]]:
    """(step, held-out loss)."""
    return [(record["step"], record["held_out"]["loss"]) for record in result.log if "held_out" in record]


def final(result: Result) -> float:
    return losses(result)[-1][1]


def held_out(result: Result) -> dict[str, float]:
    return next(record["held_out"] for record in reversed(result.log) if "held_out" in record)


def cost(result: Result, loss: float, each: float) -> float | None:
    """Operations until a held-out loss is reached, of those of a whole training of a model that takes 1 a token."""
    return next((step * each / STEPS for step, value in losses(result) if value <= loss), None)


def easy_and_hard(report: Report) -> None:
    """What easy and hard letters cost in a world of them (_early_exit.py) that a model has learned to tell apart."""
    small = {"model.width": 64, "model.block.ffn.width": 128, "objective": NextToken(), "trainer.steps": LEARNING}
    kinds = {
        "mixture of depths": {"model.depth": 4, "model.pattern": [{}, {"route": {"capacity": 0.25}}]},
        "universal": REPEATED | {"model.repeat.halting.ponder": 0.01},
    }
    for (kind, changes), what in zip(kinds.items(), ("share of routed blocks", "steps, of at most 6,"), strict=True):
        folder = FOLDER / "letters" / kind.replace(" ", "-")
        results = [whole(train(_early_exit.run(folder, seed).but(small | changes))) for seed in SEEDS]
        spent = [by_letter(result) for result in results]
        for part in ("easy", "hard"):
            report.note(f"nats of {part} letters, {kind}", [nats[part] for nats, _ in spent])
            report.note(f"{what} that the letter before {part} ones takes", [costs[part] for _, costs in spent])
    easy, hard = ([costs[part] for _, costs in spent] for part in ("easy", "hard"))  # of the one that halts
    report.less("steps before easy letters, against hard ones", easy, hard)


@torch.no_grad()
def by_letter(result: Result) -> tuple[dict[str, float], dict[str, float]]:
    """Of fresh texts, by what comes next: its nats, and what the letter before it cost."""
    model = load(result.out)
    nats, costs = defaultdict(list), defaultdict(list)
    for seed in range(40):
        text = _early_exit.text(Random(seed))
        ids = torch.tensor([[model.tokenizer.start, *model.tokenizer.encode(text)]])
        with evaluating(model.network):
            logits, cost = watched(model.network, ids)
        loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
        for letter, n, c in list(zip(text, loss.tolist(), cost.tolist()))[BEGINNING:]:
            part = "hard" if letter.isupper() else "easy"
            nats[part].append(n)
            costs[part].append(c)
    return {part: fmean(v) for part, v in nats.items()}, {part: fmean(v) for part, v in costs.items()}


def watched(network: nn.Module, ids: Int[Tensor, "1 T"]) -> tuple[Float[Tensor, "1 T V"], Float[Tensor, " T"]]:
    """Logits of a text; and the steps that each letter took, or the share of routed blocks that it went through."""
    seen: list[Tensor] = []
    parts = [network.repeat.halt] if network.repeat else [b.route.router for b in network.blocks if b.route]
    hooks = [part.register_forward_hook(lambda _, __, out: seen.append(out[0])) for part in parts]
    logits = network(ids)
    for hook in hooks:
        hook.remove()
    said = torch.stack(seen)
    if not network.repeat:
        return logits, (said > 0).float().mean(0)
    unsure = said.sigmoid().cumsum(0)[:-1] < 1 - network.repeat.config.epsilon
    return logits, 1 + unsure.float().sum(0)
