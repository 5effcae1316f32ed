"""One dial: from seconds of training to width, depth, batch, learning rate and steps, on this machine as it is.

How many operations a second this machine does in a training step is measured; the product with the seconds is the
budget. The model is the one that a budget is best spent on, by small experiments (docs/decisions.md), and how many
steps of it fit is measured on the model itself.
"""

import math

import torch

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.device import pick
from onefold.core.progress import say
from onefold.models import families
from onefold.models.transformer import DecoderConfig
from onefold.objectives.language import NextToken
from onefold.train import estimate, parallel
from onefold.train.optim import MuonConfig

HEAD_WIDTH = 32
REFERENCE = (128, 4)  # width, depth of the model by which the machine is measured


class Size(Config):
    """All that follows from the dial."""

    vocab: int
    width: int
    depth: int
    context: int
    batch: int  # rows a step
    steps: int
    lr: float
    adamw_lr: float
    weight_decay: float = 0.0
    cooldown: float = 0.6  # share of the run in which the learning rate falls
    compiled: bool = False
    seconds_per_step: float
    operations_per_second: float

    def model(self) -> DecoderConfig:
        return shape(self.vocab, self.width, self.depth, self.context)

    def __str__(self) -> str:
        tokens = self.steps * self.batch * self.context
        return (
            f"{self.depth} layers of width {self.width}, {self.steps:,} steps of {self.batch} x {self.context} tokens "
            f"({tokens / 1e6:.1f}M), {self.seconds_per_step * 1000:.0f} ms each"
        )


def shape(vocab: int, width: int, depth: int, context: int) -> DecoderConfig:
    """A Llama of this width: heads of 32, SwiGLU of 8/3, tied head."""
    ffn = 16 * round(width * 8 / 3 / 16)
    return families.llama2().but(
        {
            "vocab": vocab,
            "width": width,
            "depth": depth,
            "context": context,
            "block": {"mixer": {"heads": width // HEAD_WIDTH}, "ffn": {"width": ffn}},
            "tied": True,
            "init": "fan_in",
        }
    )


def size_up(seconds: float, vocab: int, tokens: int | None = None) -> Size:
    """The size for so many seconds of training. tokens: in one epoch of the data, of which at most four are used."""
    device = pick("auto")
    context, batch = 512, 16
    say("measuring this machine …")
    speed = _speed(*REFERENCE, vocab, context, batch, device, compiled=False)[1]
    width, depth = best_shape(speed * seconds, vocab)
    compiled = seconds >= 120 and parallel.can_compile(device)
    step, _ = _speed(width, depth, vocab, context, batch, device, compiled)
    steps = max(20, math.floor(seconds * 0.9 / step))
    if tokens:
        steps = min(steps, max(20, 4 * tokens // (batch * context)))
    return Size(
        vocab=vocab,
        width=width,
        depth=depth,
        context=context,
        batch=batch,
        steps=steps,
        lr=0.01,
        adamw_lr=0.005,
        compiled=compiled,
        seconds_per_step=step,
        operations_per_second=speed,
    )


def best_shape(operations: float, vocab: int) -> tuple[int, int]:
    """Width and depth that this many operations train best."""
    width = 32 * max(2, round(192 / 32 * (operations / 3e13) ** 0.25))
    return width, max(3, round(width / 40))


def _speed(width, depth, vocab, context, batch, device, compiled) -> tuple[float, float]:
    """(seconds of a training step, operations a second) of a model of this shape, random tokens."""
    torch.manual_seed(0)
    config = shape(vocab, width, depth, context)
    model = config.build()
    parallel.place(model, (), device, compiled)
    objective, optimizer = NextToken().build(), MuonConfig().build(model)
    tokens = torch.randint(0, vocab, (batch, context), device=device)
    rows = TokenBatch(tokens=tokens, targets=tokens, weights=torch.ones(batch, context, device=device))

    def step() -> None:
        term = objective(model, rows, 0).terms["ce"]
        (term.sum / term.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = estimate.step_seconds(step, device)
    return seconds, estimate.count_flops(config, objective, rows) * batch * context / seconds
