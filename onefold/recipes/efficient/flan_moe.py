"""Mixture-of-experts meets instruction tuning (Shen et al. 2023, "Flan-MoE", arXiv 2305.14705).

    onefold train flan_moe start=runs/switch pairs=tasks.jsonl     # columns input and target: tasks told in words
    onefold train flan_moe start=runs/switch pairs=tasks.jsonl frozen_router=true

Claim: tuned on a single task, a mixture is no better than a dense model of the same arithmetic; tuned on many tasks
told in words first, it is, at tasks it was never told and at single ones that it learns afterwards. So mixtures gain
more from instructions than dense models do.

Deviations: the tasks are yours instead of the Flan collection's 1,836, and the settings Flan-T5-Base's (Chung et al.
2022, arXiv 2210.11416, appendix E). Experts have the dropout of all layers, not one of their own.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch

from onefold.data.text.chat.messages import chat_ids
from onefold.data.text.pairs.text_pairs import TextPairsData
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, load
from onefold.nn.feedforward import GatedMLPConfig
from onefold.recipes.alignment import _instructions as world
from onefold.recipes.alignment import _teaching as teaching
from onefold.recipes.efficient import mixtral
from onefold.study.check import Report
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdafactorConfig
from onefold.training.optimizers.schedule import Constant
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

FROZEN = Group(pattern="*.router.*", lr=0.0, decay=0.0)


def recipe(start: str | None = None, pairs: str = "tasks.jsonl", frozen_router: bool = False) -> Run:
    """All weights of an encoder-decoder with experts, or all but its routers'; 84,000 steps of 64 pairs."""
    groups = (FROZEN,) if frozen_router else ()
    return Run(
        data=TextPairsData(path=(pairs,), context=512),
        start=start,
        optimizer=AdafactorConfig(lr=5e-4, groups=groups),
        trainer=TrainerConfig(steps=84_000, batch=64, clip=None, schedule=Constant(warmup=0), evaluate_every=2000),
        out=Path("runs/flan_moe"),
    )


def tiny(start: str | None = None, pairs: str = "tasks.jsonl", frozen_router: bool = False) -> Run:
    """128 tokens a side, for models of a million parameters."""
    trainer = {"steps": 200, "batch": 16, "evaluate_every": 50}
    return recipe(start, pairs, frozen_router).but({"data.context": 128, "optimizer.lr": 1e-2, "trainer": trainer})


# --- The check ------------------------------------------------------------------------------------------------------

CONTEXT, VOCAB = 64, 512
KNOWN, READING = 8000, 300  # lines that models read before, and steps
TOLD, TUNING, RATE = 600, 150, 2e-3  # instructions of all tasks but one, and steps
EXAMPLES, FITTING = 48, 40  # of the task that was left out, and steps
TASK, ASKED = "second", 200
KINDS = {"dense": GatedMLPConfig(width=128), "mixture": mixtral.of(8, 128)}


def check(report: Report) -> None:
    """Synthetic: eight tasks about digits, all of which models have read of, and seven of which they are told; what
    that is worth at the eighth, at once and with a few examples, for a dense model and for a mixture."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed in teaching.SEEDS:
        folder, random = Path(f"runs/check/flan_moe/{seed}"), Random(seed)
        files, taught = _files(folder, random)
        seven, eighth = _asked(random, False, ASKED, taught), _asked(random, True, ASKED, taught)
        for kind, ffn in KINDS.items():
            place, model = folder / kind, teaching.small(VOCAB, CONTEXT).but({"block.ffn": ffn.to_dict()})
            own = {"model": model.to_dict(), "trainer.batch": 16}
            base = teaching.reader(files["known"], place / "base", seed, CONTEXT, VOCAB, READING, own)
            direct = _tuned(files["task"], place / "direct", seed, base, FITTING)
            note(f"{kind}: the eighth, from examples alone", _right(direct, eighth))
            ways: dict[str, dict[str, Any]] = {kind: {}}
            if kind == "mixture":
                unbalanced = model.but({"block.ffn.router.balance": 0.0})
                ways |= {"no balance loss": {"model": unbalanced.to_dict()}}
                ways |= {"router frozen": {"optimizer.groups": [FROZEN.to_dict()]}}
            for way, changes in ways.items():
                out = place / f"told-{way.replace(' ', '-')}"
                told = _tuned(files["told"], out, seed, base, TUNING, changes)
                after = _tuned(files["task"], out.with_name(f"{out.name}-task"), seed, out, FITTING)
                note(f"{way}: new instructions of the seven", _right(told, seven))
                note(f"{way}: the eighth, never told", _right(told, eighth))
                note(f"{way}: the eighth, told the seven, then from examples", _right(after, eighth))
    for name, values in found.items():
        report.note(f"synthetic, share right, {name}", values)
    gains = {}
    for kind in KINDS:
        seven, eighth = found[f"{kind}: new instructions of the seven"], found[f"{kind}: the eighth, never told"]
        report.less(f"synthetic, {kind}: right at the eighth, never told, against the seven", eighth, seven)
        before = found[f"{kind}: the eighth, from examples alone"]
        after = found[f"{kind}: the eighth, told the seven, then from examples"]
        gains[kind] = [b - a for a, b in zip(before, after)]
        report.note(f"synthetic, {kind}: what the seven bring at the eighth, share right", gains[kind])
    more = [m - d for m, d in zip(gains["mixture"], gains["dense"])]
    report.note("synthetic: what they bring the mixture more than the dense model", more)
    moved = [_moved(Path(f"runs/check/flan_moe/{seed}/mixture")) for seed in teaching.SEEDS]
    report.equal("routers that moved while they were frozen, and all that were to", moved, [(0, 2)] * len(moved))


def _moved(folder: Path) -> tuple[int, int]:
    """Routers that are other than before, where they were frozen and where they were not."""
    names = ("base", "told-router-frozen", "told-mixture")
    before, frozen, free = (load(folder / name).network.state_dict() for name in names)
    routers = [name for name in before if ".router." in name]
    return tuple(sum(not torch.equal(before[name], after[name]) for name in routers) for after in (frozen, free))


def _files(folder: Path, random: Random) -> tuple[dict[str, Path], set[str]]:
    """What is read before, instructions of all tasks but one, and a few of that one; and these instructions' texts."""
    known = [{"text": world.knowledge(random)} for _ in range(KNOWN)]
    told, few = _asked(random, False, TOLD), _asked(random, True, EXAMPLES)
    rows = {"known": known, "told": [_talk(*one) for one in told], "task": [_talk(*one) for one in few]}
    files = {name: teaching.write(folder / f"{name}.jsonl", some) for name, some in rows.items()}
    return files, {text for text, _ in (*told, *few)}


def _asked(random: Random, left_out: bool, count: int, but: Collection[str] = ()) -> list[tuple[str, str]]:
    """Different instructions with their digits, others than those of `but`: of the task that is left out, or of all
    others."""
    found: dict[str, str] = {}
    while len(found) < count:
        wish = world.wish(random)
        if (world.WORDINGS[wish.wording] == TASK) == left_out and wish.text not in but:
            found.setdefault(wish.text, world.numbers(random))
    return list(found.items())


def _talk(instruction: str, row: str) -> dict:
    return {"prompt": f"{instruction}\n\n{row}", "completion": world.solve(instruction, row)}


def _tuned(
    file: Path, out: Path, seed: int, start: Path, steps: int, changes: Mapping[str, Any] | None = None
) -> Model:
    settings = {"optimizer.lr": RATE, "trainer.batch": 16, **(changes or {})}
    return teaching.student(file, out, seed, steps, start, CONTEXT, settings)


def _right(model: Model, asked: list[tuple[str, str]]) -> float:
    """The share of instructions to which the answer is right, word by word."""
    talks = [[{"role": "user", "content": _talk(*one)["prompt"]}] for one in asked]
    sampling = Sampling(max_new_tokens=12, temperature=0.0)
    rows = model.begin_all([chat_ids(talk, model.tokenizer) for talk in talks], sampling)
    model.finish(rows, sampling)
    return fmean(row.text.strip() == world.solve(*one) for row, one in zip(rows, asked))
