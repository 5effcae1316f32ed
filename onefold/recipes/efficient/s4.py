"""S4 (Gu, Goel, Ré 2021, arXiv 2111.00396) and S4D (Gu et al. 2022, arXiv 2206.11893): state spaces for long sequences.

    onefold train s4 --tiny                                    # nested lists: "[MAX 2 9 [MIN 4 7 ] 0 ]" is 9
    onefold train s4 task=pixels data=fashion-mnist/           # pictures, pixel by pixel; without data, bundled digits
    onefold train s4 task=waves data=speech_commands/          # sound by sample: a folder of .wav for each class
    onefold train s4 --tiny task=copy                          # what was said first is asked at the end
    onefold train s4 --tiny task=delay data.source.length=4096 data.context=4096 model.context=4096

Claim: a linear recurrence that begins as HiPPO has it remembers thousands of steps, where LSTMs forget and attention
costs the square of the length; it trains as a convolution and writes as a recurrence.

Settings are those of the authors' later experiments in the Long Range Arena (arXiv 2206.12037): what lists, pictures
and sound have in common is here, and the table TASKS says what they differ in. A, B and Δ learn at a tenth of the rate,
without decay (arXiv 2111.00396, appendix D.1).

Deviations: the mixer is S4D unless mixer=s4 says otherwise; layer norm where the authors have batch norm in two of the
three; pixels and samples are symbols of 256 levels with a vector each, not numbers that a matrix widens (for that there
is a vision transformer of one pixel: model.kind=vit, model.patch=1).
"""

import shutil
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.sequences.made import Delay, ListOps
from onefold.data.sequences.read import Pixels, Waves
from onefold.data.sequences.sequences import SequenceData
from onefold.models.embed import EmbedConfig
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.text_head import TextHeadConfig
from onefold.models.transformer import BlockConfig, DecoderConfig, count_parameters
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.position import LearnedPositionConfig
from onefold.nn.states.ssm import S4Config, S4DConfig
from onefold.objectives.classification import Classification
from onefold.recipes._miniature import SEEDS
from onefold.study.check import Report, whole
from onefold.study.pages.charts import MARKERS, Axis, Curve, draw
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

SLOW = Group(pattern="*.kernel.[!CD]*", lr=0.1)  # A, B and Δ


@dataclass(frozen=True)
class Setting:
    """What a task has of its own."""

    width: int
    depth: int
    context: int
    batch: int
    steps: int
    residual: Literal["pre", "post"] = "post"
    dropout: float = 0.0
    both: bool = True  # kernels look ahead, too


TASKS = {
    "listops": Setting(width=128, depth=8, context=2000, batch=50, steps=80_000),
    "pixels": Setting(width=512, depth=6, context=1024, batch=50, steps=180_000, dropout=0.1),
    "waves": Setting(width=128, depth=6, context=16_000, batch=16, steps=210_000, residual="pre"),
    "delay": Setting(width=128, depth=4, context=4096, batch=50, steps=20_000, both=False),
    "copy": Setting(width=128, depth=4, context=4096, batch=50, steps=20_000, both=False),
}


def recipe(task: str = "listops", data: str | None = None, mixer: Literal["s4d", "s4"] = "s4d") -> Run:
    """`data`: a folder of pictures or sounds for the task that reads one."""
    setting = _known(task)
    layer = (S4DConfig if mixer == "s4d" else S4Config)(causal=not setting.both, dropout=setting.dropout)
    return Run(
        data=SequenceData(source=source(task, data), context=setting.context, held_out=0.02),
        model=DecoderConfig(
            vocab=258,
            width=setting.width,
            depth=setting.depth,
            context=setting.context,
            block=BlockConfig(norm=LayerNormConfig(), mixer=layer, ffn=None, residual=setting.residual,
                              dropout=setting.dropout),
            norm=LayerNormConfig() if setting.residual == "pre" else None,
            classes=10,
            classifier=TextHeadConfig(pooling="mean" if setting.both else "last"),
        ),
        objective=Classification(),
        optimizer=AdamWConfig(lr=0.01, betas=(0.9, 0.999), weight_decay=0.05, groups=(SLOW,)),
        trainer=TrainerConfig(
            steps=setting.steps, batch=setting.batch, schedule=Cosine(warmup=1000, final=0.0),
            evaluate_every=1000, checkpoint_every=1000,
        ),
        out=f"runs/s4_{task}",
    )  # fmt: skip


def source(task: str, data: str | None) -> Config:
    """Where the sequences of a task come from."""
    if task == "waves":
        if data is None:
            raise UserError("sound is not at hand: give data=FOLDER, with a folder of .wav files for each class")
        return Waves(path=data)
    if task == "pixels":
        return Pixels() if data is None else Pixels(path=data)
    if data is not None:
        raise UserError(f"task={task} makes its own sequences: leave data out")
    if task == "listops":
        return ListOps(count=100_000)
    return Delay(count=100_000, length=4096, kept=10 if task == "copy" else 1)


def tiny(task: str = "listops", data: str | None = None, mixer: Literal["s4d", "s4"] = "s4d") -> Run:
    """Eighty thousand parameters, and shorter sequences: half a minute on two cores."""
    short = {
        "listops": {"source": {"count": 12_000, "depth": 4, "arguments": 4, "lengths": (8, 64)}, "context": 64},
        "pixels": {"held_out": 0.1},
        "waves": {"source": {"length": 2000}, "context": 2000, "held_out": 0.1},
        "delay": {"source": {"count": 10_000, "length": 64}, "context": 64},
        "copy": {"source": {"count": 10_000, "length": 64, "kept": 4}, "context": 64},
    }
    return recipe(task, data, mixer).but(
        {
            "data": short[task],
            "model": {"width": 64, "depth": 4, "context": short[task].get("context", 1024)},
            "model.block": {"dropout": 0.0, "mixer": {"states": 32, "dropout": 0.0}},
            "trainer": {"steps": 600, "batch": 32, "evaluate_every": 100, "checkpoint_every": 200},
            "trainer.schedule.warmup": 0.1,
        }
    )


def check(report: Report) -> None:
    """Convolution and recurrence agree; accuracy against length, beside an LSTM and attention of the same size."""
    for mixer in ("s4d", "s4"):
        config = recipe("delay", mixer=mixer).model.but({"width": 32, "depth": 2})
        torch.manual_seed(0)
        model, tokens = config.build().eval(), torch.randint(0, 258, (2, 300))
        with torch.no_grad():
            state = model.init_state(2, 300)
            parts = [model.features(tokens[:, :200], state=state)]
            parts += [model.features(tokens[:, t : t + 1], state=state) for t in range(200, 300)]
            apart = (torch.cat(parts, 1) - model.features(tokens)).abs().max().item()
        report.close(f"recurrence against convolution, largest difference, {mixer}", apart, 0.0, 1e-3)
    sizes = [count_parameters(of(kind, 8)) for kind in KINDS]
    report.less("parameters of the largest model, of the smallest, for 64 pixels", max(sizes) / min(sizes), 1.05)
    found: dict[str, list[list[float]]] = {}
    for kind in KINDS:
        found[kind] = [[accuracy(kind, side, seed) for seed in SEEDS] for side in SIDES]
        for side, scores in zip(SIDES, found[kind], strict=True):
            report.note(f"held-out accuracy on digits of {side * side} pixels, {kind}", scores)
    report.less("chance, against S4D on the longest", 0.1, found["S4D"][-1])
    kept = {kind: fmean(scores[-1]) / fmean(scores[0]) for kind, scores in found.items()}
    for kind, share in kept.items():
        report.note(f"accuracy on {SIDES[-1] ** 2} pixels, of that on {SIDES[0] ** 2}, {kind}", share)
    for name, paper in {"ListOps": 59.6, "Image": 88.65, "Speech Commands, raw, ten words": 98.32}.items():
        report.published(f"accuracy of S4 on {name}, %", paper)
    lengths = np.array([side * side for side in SIDES])
    curves = [
        Curve(lengths, np.array([fmean(of_seeds) for of_seeds in scores]), f"series-{i + 1}", "dots", kind,
              band=(np.array([min(x) for x in scores]), np.array([max(x) for x in scores])), marker=MARKERS[i])
        for i, (kind, scores) in enumerate(found.items())
    ]  # fmt: skip
    axes = Axis("pixels read", log=True, text=lambda v: f"{v:.0f}"), Axis("held-out accuracy", 0, 1)
    report.chart("accuracy against length", draw(curves, *axes, title="The same digits, ever longer", margin=120))


KINDS = ("S4D", "LSTM", "attention")
SIDES = (8, 12, 16)
STEPS = 200


def of(kind: str, side: int) -> Config:
    """The three models of a check, of about 17,000 parameters, which classify by the mean of what they say.

    Attention has a vector for each further place beside that.
    """
    common: dict[str, Any] = {"vocab": 258, "context": side * side, "classes": 10}
    head = TextHeadConfig(pooling="mean")
    if kind == "LSTM":
        return RecurrentConfig(**common, width=32, hidden=32, depth=1, classifier=head)
    if kind == "S4D":
        mixer, ffn, width, place = S4DConfig(states=32), None, 32, None
    else:
        place = LearnedPositionConfig(context=side * side)
        mixer, ffn, width = AttentionConfig(heads=2), MLPConfig(width=48), 24
    block = BlockConfig(norm=LayerNormConfig(), mixer=mixer, ffn=ffn)
    embed = EmbedConfig(position=place)
    return DecoderConfig(
        **common, width=width, depth=2, embed=embed, block=block, norm=LayerNormConfig(), classifier=head
    )


def small(kind: str, side: int, seed: int) -> Run:
    """Digits of so many pixels a side, briefly; all at the same rate."""
    return recipe("pixels").but(
        {
            "data": {"source": {"side": side}, "context": side * side, "held_out": 0.1},
            "model": of(kind, side).to_dict(),
            "optimizer": {"weight_decay": 0.0, "groups": [SLOW.to_dict()] if kind == "S4D" else []},
            "trainer": {"steps": STEPS, "batch": 16, "evaluate_every": STEPS, "checkpoint_every": STEPS},
            "trainer.schedule.warmup": 0.1,
            "seed": seed,
            "out": f"runs/check/s4/{side}/{kind}-{seed}",
        }
    )


def accuracy(kind: str, side: int, seed: int) -> float:
    """On digits held out, at the end; what is trained already is only read."""
    result = whole(train(_with_data(small(kind, side, seed))))
    return next(record["held_out"]["accuracy"] for record in reversed(result.log) if "held_out" in record)


def _with_data(run: Run) -> Run:
    """The same, beside the digits of the first run of this size."""
    first, own = run.out.parent / f"{KINDS[0]}-0" / "data", run.out / "data"
    if first.is_dir() and not own.exists():
        shutil.copytree(first, own)
    return run


def _known(task: str) -> Setting:
    if task not in TASKS:
        raise UserError(f"no task {task!r}; there are {', '.join(TASKS)}")
    return TASKS[task]
