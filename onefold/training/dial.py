"""One dial: from seconds of training to width, depth, batch, learning rates and steps, on this machine as it is.

How many operations a second a training step does here is measured, in fp32 and, on processors that have it, in bf16;
times the seconds, that is the budget. Which model a budget is best spent on was found by small experiments
(docs/decisions.md); how many steps of it fit is measured on that model itself.
"""

from collections.abc import Callable
from typing import Literal

import torch

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.device import pick
from onefold.core.progress import say
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.objectives.language import NextToken
from onefold.training import estimate
from onefold.training.optimizers.optim import Group, MuonConfig
from onefold.training.processes import parallel

Precision = Literal["fp32", "bf16"]

CONTEXT = 256
HEAD_WIDTH = 80  # about: fewer, wider heads are faster on a CPU
USABLE = 0.9  # of the time: the rest is evaluation, saving, and steps slower than the best
EPOCHS = 4  # reading a text more often than this teaches little more (arXiv 2305.16264)
WORTH_COMPILING = 240  # seconds of training from which on compilation pays for itself in fp32


class Size(Config):
    """All that follows from the dial."""

    vocab: int
    width: int
    depth: int
    context: int
    batch: int  # rows a step
    steps: int
    precision: Precision
    compiled: bool
    seconds_per_step: float
    operations_per_second: float

    def model(self) -> DecoderConfig:
        return shape(self.vocab, self.width, self.depth, self.context)

    def optimizer(self, scale: float = 1.0) -> MuonConfig:
        """Muon for the matrices of the blocks, AdamW for the rest; `scale` multiplies all learning rates."""
        head = Group(pattern="unembed*", lr=0.4)
        return MuonConfig(
            lr=0.03 * scale, scale="spectral", adamw_lr=0.025 * scale, weight_decay=0.0, eps=1e-10, groups=(head,)
        )

    def __str__(self) -> str:
        tokens = self.steps * self.batch * self.context
        return (
            f"{count_parameters(self.model()) / 1e6:.1f}M parameters in {self.depth} layers of width {self.width}, "
            f"{self.steps:,} steps of {self.batch} x {self.context} tokens ({tokens / 1e6:.1f}M in all), "
            f"{self.seconds_per_step * 1000:.0f} ms each, {self.precision}{', compiled' if self.compiled else ''}"
        )


def shape(vocab: int, width: int, depth: int, context: int) -> DecoderConfig:
    """A Qwen 3 in small, so that published formats hold it: SwiGLU of twice the width, normalised queries and keys."""
    heads = min((h for h in range(2, width // 32 + 1) if width % h == 0), key=lambda h: abs(width / h - HEAD_WIDTH))
    return families.qwen3().but(
        {
            "vocab": vocab,
            "width": width,
            "depth": depth,
            "context": context,
            "block.mixer": {"heads": heads, "kv_heads": None, "head_width": None},
            "block.mixer.position.theta": 10000.0,
            "block.ffn.width": 2 * width,
            "tied": False,
            "init": "fan_in",
        }
    )


def size_up(seconds: float, vocab: int, tokens: int | None = None) -> Size:
    """The size for so many seconds of training. tokens: in one epoch of the data, of which at most four are used."""
    say("measuring this machine …")
    device = pick("auto")
    probe = shape(vocab, 128, 4, CONTEXT)
    precision, speed = max(
        ((p, operations(probe, 8) / step_seconds(probe, 8, device, p)) for p in precisions(device)),
        key=lambda found: found[1],
    )
    width, depth, batch = best_shape(speed * seconds)
    model = shape(vocab, width, depth, CONTEXT)
    compiled = precision == "fp32" and seconds >= WORTH_COMPILING and parallel.can_compile(device)
    step = step_seconds(model, batch, device, precision, compiled)
    steps = int(seconds * USABLE / step)
    if tokens:
        steps = min(steps, EPOCHS * tokens // (batch * CONTEXT))
    return Size(
        vocab=vocab,
        width=width,
        depth=depth,
        context=CONTEXT,
        batch=batch,
        steps=max(10, steps),
        precision=precision,
        compiled=compiled,
        seconds_per_step=step,
        operations_per_second=speed,
    )


def best_shape(budget: float) -> tuple[int, int, int]:
    """Width, depth and rows of a batch that train best with this many operations."""
    width = 32 * max(3, round(6 * (budget / 3e13) ** 0.25))
    rows = 8 if budget < 6e13 else 16 if budget < 3e14 else 32
    return width, max(3, round(width / 45)), rows


def precisions(device: torch.device) -> list[Precision]:
    """What is worth trying here: bf16 only where the processor computes in it."""
    if device.type == "cuda":
        return ["bf16"] if torch.cuda.is_bf16_supported() else ["fp32"]
    has_it = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return ["fp32", "bf16"] if has_it else ["fp32"]


def operations(config: DecoderConfig, rows: int) -> float:
    """Of one training step."""
    return estimate.count_flops(config, NextToken().build(), _rows(config, rows)) * rows * config.context


def step_seconds(
    config: DecoderConfig, rows: int, device: torch.device, precision: Precision, compiled: bool = False
) -> float:
    """How long a training step of this model takes here, on random tokens."""
    return estimate.best_seconds(_step(config, rows, device, precision, compiled), device)


def _step(
    config: DecoderConfig, rows: int, device: torch.device, precision: Precision, compiled: bool
) -> Callable[[], None]:
    model = config.build()
    parallel.place(model, (), device, compiled)
    objective, optimizer, batch = NextToken().build(), MuonConfig().build(model), _rows(config, rows).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            term = objective(model, batch, 0).terms["ce"]
        (term.sum / term.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _rows(config: DecoderConfig, rows: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab, (rows, config.context), generator=generator)
    return TokenBatch(tokens=tokens, targets=tokens, weights=torch.ones(rows, config.context))
