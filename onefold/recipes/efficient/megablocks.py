"""MegaBlocks (Gale et al. 2022, arXiv 2211.15841): experts that drop nothing and pad nothing.

    onefold train megablocks data=notes/
    onefold train megablocks data=notes/ size=small model.block.ffn.capacity=1.25      # what it is compared with

Claim: an expert that may read only so many tokens drops what is more, and one that may read many is padded. With a
product of matrices that takes each expert's tokens as many as they are, nothing is dropped, the loss is that of the
best capacity or better (section 3, figure 2), and training takes up to 40% less time.

Deviations: grouped products of matrices instead of the paper's sparse blocks of 128 by 128, which do the same; one
machine does not spread experts (trainer.parallel does on several). Its models are GPT-2's with 64 experts in each
layer; learning rates were not published: GPT-2's stand in.
"""

import numpy as np
import torch

from onefold.models import families
from onefold.models.families import pick
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.nn.feedforward import MLPConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig
from onefold.recipes.efficient import _experts as world
from onefold.recipes.efficient import switch
from onefold.recipes.language import gpt2
from onefold.study.check import Report
from onefold.study.pages.charts import Axis, Curve, Level, draw
from onefold.training.run import Run

SHAPES = {"xs": (512, 6, 8), "small": (768, 12, 12), "medium": (1024, 24, 16)}  # width, layers, heads (table 1)
PAPER = {"xs": 839e6, "small": 3_693e6, "medium": 13_041e6}  # table 2
CAPACITIES = (1.0, 1.25, 1.5, 2.0)
COUNT = 16  # experts of the check


def recipe(data: str = "stdlib", size: str = "xs", tokenizer: str | None = None) -> Run:
    """10 billion tokens, 512 rows of 1,024 at a time (section 6). Sizes: xs, small, medium."""
    trainer = {"steps": 19_073, "batch": 512}
    return gpt2.recipe(data, tokenizer=tokenizer).but(
        {"model": model(size).to_dict(), "trainer": trainer, "out": "runs/megablocks"}
    )


def tiny(data: str = "stdlib", tokenizer: str | None = None) -> Run:
    """GPT-2's miniature, with four experts a layer, of 192 units each."""
    run = gpt2.tiny(data, tokenizer=tokenizer)
    ffn = of(4, run.model.block.ffn.but({"width": 192}))
    return run.but({"model.block.ffn": ffn.to_dict(), "out": "runs/megablocks"})


def model(size: str) -> DecoderConfig:
    width, depth, heads = pick(SHAPES, size, "MegaBlocks model")
    dense = families.gpt2()
    expert = dense.block.ffn.but({"width": 4 * width})
    shape = {"width": width, "depth": depth, "block.mixer.heads": heads}
    return dense.but(shape | {"block.ffn": of(64, expert).to_dict()})


def of(experts: int, expert: MLPConfig) -> ExpertsConfig:
    """Top-1, nothing dropped; without Switch's jitter."""
    return ExpertsConfig(experts=experts, expert=expert, router=SwitchConfig(jitter=0.0))


def check(report: Report) -> None:
    """Sizes; no row is padded; loss and what was dropped, by capacity."""
    for size, published in PAPER.items():
        ours = count_parameters(model(size))
        report.close(f"parameters in millions, {size}", ours / 1e6, published / 1e6, 0.005 * published / 1e6)
    report.equal("rows that experts multiply, of 1,000 tokens that all choose one of 16", multiplied(1000), 1000)
    kinds = {c: f"{COUNT} experts, capacity {c:g}" for c in CAPACITIES}
    runs = {kind: world.small(switch.of(COUNT, c)) for c, kind in kinds.items()}
    dense, dropless, many = "dense", f"{COUNT} experts, switch", "64 experts, capacity 1.25"
    own = {many: world.small(switch.of(64, 1.25)), dense: world.small(switch.DENSE)}
    found = world.trained({**own, **runs, dropless: world.small(switch.of(COUNT))})  # dropless and dense are switch's
    for capacity, kind in kinds.items():
        dropped = [world.mean(result, "dropped") for result in found[kind]]
        report.note(f"share dropped in training, capacity {capacity:g}", dropped)
    report.note("share dropped in training, capacity 1.25, 64 experts", [world.mean(r, "dropped") for r in found[many]])
    report.note("held-out loss, capacity 1.25, 64 experts", [world.final(result) for result in found.pop(many)])
    report.equal("share dropped without a capacity", max(world.mean(r, "dropped") for r in found[dropless]), 0.0)
    took = world.paces({kind: results[0].run for kind, results in found.items()})
    report.note("held-out loss, dense", [world.final(result) for result in found[dense]])
    for kind, name in {**{kind: f"capacity {c:g}" for c, kind in kinds.items()}, dropless: "dropless"}.items():
        report.note(f"held-out loss, {name}", [world.final(result) for result in found[kind]])
        report.note(f"loss in training, last 50 steps, {name}", [world.mean(r, "ce", 50) for r in found[kind]])
        report.note(f"milliseconds of a step, {name}", 1000 * took[kind])
    *by_capacity, unlimited = ([world.final(r) for r in found[kind]] for kind in (*kinds.values(), dropless))
    report.less("held-out loss, dropless against capacity 1", unlimited, by_capacity[0])
    _chart(report, np.array(by_capacity), float(np.mean(unlimited)))


def _chart(report: Report, by_capacity: np.ndarray, dropless: float) -> None:
    """by_capacity: [capacities, seeds]."""
    band = by_capacity.min(1), by_capacity.max(1)
    line = Curve(np.array(CAPACITIES), by_capacity.mean(1), "series-1", "dots", "limited", band)
    axes = Axis("capacity of an expert, times its even share", 0.95, 2.0), Axis("held-out loss, nats per token")
    name = "held-out loss by capacity"
    report.chart(name, draw([line], *axes, [Level("dropless", dropless, "series-2")], title=name, margin=110))


@torch.no_grad()
def multiplied(tokens: int) -> int:
    """Rows that an MLP of 16 experts multiplies where all tokens choose the same one."""
    layer = switch.of(COUNT).build(8)
    layer.router.weight.zero_()[3] = 1.0
    rows: list[int] = []
    layer.experts.up.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    layer(torch.ones(1, tokens, 8))
    return sum(rows)
