"""Mixtral 8x7B (Jiang et al. 2024, arXiv 2401.04088): Mistral whose feed-forward layers are experts.

    onefold train mixtral data=notes/
    onefold train mixtral start=runs/mistral data=notes/     # every expert begins as Mistral's own layer

Claim: of eight experts a layer each token sees two, so that a model of 47 billion parameters costs as much a token as
one of 13 billion, and is as good as a dense one of 70.

Deviations: neither data, optimizer nor schedule were published; those of Llama 2 7B stand in. The check also asks what
the papers before it say of experts (arXiv 2101.03961, figure 4; arXiv 2211.15841, figure 2): whether a dense model's
loss is reached in fewer steps the more experts there are, and what dropping tokens costs.
"""

import shutil
from statistics import fmean

import numpy as np
import torch

from onefold.core.config import Config
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.recipes import _miniature as miniature
from onefold.recipes._miniature import SEEDS
from onefold.recipes.language import llama2
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.run import Result, Run, train

STEPS, EVERY, INNER = 240, 20, 172
ACTIVE = {"8x7b": 12_879_925_248}  # computed, not published: "13B"


def recipe(data: str = "stdlib", tokenizer: str | None = None, start: str | None = None) -> Run:
    """start: a dense model of the same width, whose layers each expert begins as."""
    model = families.mixtral().to_dict()
    changes = {"model": model, "data.context": 8192, "trainer.batch": 512, "out": "runs/mixtral", "start": start}
    return llama2.recipe(data, tokenizer=tokenizer).but(changes)


def tiny(data: str = "stdlib", start: str | None = None) -> Run:
    """A million parameters: four experts a layer, two of which are as wide as the dense layer of a smaller model."""
    return llama2.tiny(data).but({"model.block.ffn": of(4, INNER), "out": "runs/mixtral", "start": start})


def of(experts: int, inner: int, capacity: float | None = None) -> ExpertsConfig:
    """Experts, two of which have `inner` units."""
    return ExpertsConfig(experts=experts, expert=GatedMLPConfig(width=inner // 2), capacity=capacity)


def check(report: Report) -> None:
    """Exact sizes; experts are a loop over tokens; they learn; loss against their number, and what dropping costs."""
    for size, published in {"8x7b": 46_702_792_704, "8x22b": 140_620_634_112}.items():
        report.equal(f"parameters, {size}", count_parameters(families.mixtral(size)), published)
    report.equal("parameters that a token sees, 8x7b", active(families.mixtral()), ACTIVE["8x7b"])
    report.close("a layer against a loop over tokens, largest difference", against_a_loop(), 0.0, 1e-5)
    miniature.cache_is_exact(report, tiny().model)
    small = {
        **{"model.width": 64, "model.depth": 2, "model.context": 64, "data.context": 64, "data.tokenizer.vocab": 512},
        **{"model.vocab": 512, "trainer.batch": 16, "trainer.evaluate_every": EVERY, "trainer.steps": STEPS},
    }
    kinds: dict[str, Config] = {
        "dense": GatedMLPConfig(width=INNER),
        "4 experts": of(4, INNER),
        "16 experts": of(16, INNER),
        "16 experts, capacity 1": of(16, INNER, capacity=1.0),
    }
    found: dict[str, list[Result]] = {}
    for kind, ffn in kinds.items():
        folder = f"runs/check/mixtral/{kind.replace(' ', '-').replace(',', '')}"
        runs = [tiny().but({**small, "model.block.ffn": ffn, "seed": s, "out": f"{folder}/{s}"}) for s in SEEDS]
        found[kind] = [whole(train(_with_data(run))) for run in runs]
        report.note(f"held-out loss, {kind}", [losses(result)[-1][1] for result in found[kind]])
    learned = [losses(result)[-1][1] for kind in kinds if kind != "dense" for result in found[kind]]
    report.less("held-out loss of the worst mixture, against its first", max(learned), losses(found["dense"][0])[0][1])
    dense = [losses(result)[-1][1] for result in found["dense"]]
    for kind in ("4 experts", "16 experts"):
        steps = [reached(result, loss) for result, loss in zip(found[kind], dense, strict=True)]
        done = [step for step in steps if step is not None]
        report.note(f"seeds of {len(SEEDS)} that reach the dense model's loss, {kind}", len(done))
        if done:
            report.note(f"steps that they take, of the dense model's {STEPS}, {kind}", done)
    dropped = [fmean(r["dropped"] for r in result.log) for result in found["16 experts, capacity 1"]]
    report.note("share dropped at capacity 1", dropped)
    report.equal("share dropped without a limit", max(r["dropped"] for r in found["16 experts"][0].log), 0.0)
    loads = [load for result in found["16 experts"] for load in final_loads(result)]
    report.note("experts that read no held-out token, of 16, largest of all layers and seeds", max(
        sum(share == 0 for share in load) for load in loads
    ))  # fmt: skip
    report.note("busiest expert, times its even share, mean over layers and seeds", fmean(max(x) * 16 for x in loads))
    curves = [
        Curve(*np.array(mean_losses(results)[1:]).T, f"series-{i + 1}", label=kind)
        for i, (kind, results) in enumerate(found.items())
    ]
    axes = Axis("steps"), Axis("held-out loss, nats per token")
    report.chart("held-out loss against steps", draw(curves, *axes, title="Held-out loss", margin=150))


def _with_data(run: Run) -> Run:
    """The same, with the data of the first run of all beside it, which are the same: tokenized once."""
    first, own = run.out.parents[1] / "dense" / "0" / "data", run.out / "data"
    if first.is_dir() and not own.exists():
        shutil.copytree(first, own)
    return run


def active(config: DecoderConfig) -> int:
    """Parameters that a token is multiplied with."""
    ffn = config.block.ffn
    return count_parameters(config) - config.depth * (ffn.experts - ffn.router.k) * 3 * config.width * ffn.expert.width


@torch.no_grad()
def against_a_loop() -> float:
    torch.manual_seed(0)
    layer = of(6, 32).build(24)
    x = torch.randn(40, 24)
    expected = []
    for row in x:
        p, chosen = (layer.router.weight @ row).softmax(0).topk(2)
        parts = []
        for weight, e in zip(p / p.sum(), chosen.tolist(), strict=True):
            gate, up = (layer.experts.gate_up.weight[e] @ row).chunk(2)
            parts.append(weight * (layer.experts.out.weight[e] @ (torch.nn.functional.silu(gate) * up)))
        expected.append(sum(parts))
    return (layer(x[None])[0] - torch.stack(expected)).abs().max().item()


def losses(result: Result) -> list[tuple[int, float]]:
    """(step, held-out loss)."""
    return [(record["step"], record["held_out"]["loss"]) for record in result.log if "held_out" in record]


def mean_losses(results: list[Result]) -> list[tuple[int, float]]:
    return [(steps[0][0], fmean(loss for _, loss in steps)) for steps in zip(*map(losses, results), strict=True)]


def reached(result: Result, loss: float) -> float | None:
    """The step at which a held-out loss was first as low as `loss`, between evaluations by a line; None: never."""
    before = None
    for step, value in losses(result):
        if value <= loss:
            return step if before is None else before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = step, value
    return None


def final_loads(result: Result) -> list[list[float]]:
    """The share of the assignments that each expert got in the last evaluation, by layer."""
    last = next(record["held_out"] for record in reversed(result.log) if "held_out" in record)
    return [value for name, value in last.items() if name.startswith("load/")]
