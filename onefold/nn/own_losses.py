"""What modules add to the loss of whatever their model is trained for, and what they tell of themselves.

A module that has such losses has a list `told`, None while nobody listens. Whoever computes a loss opens `listening`
around it; every call of such a module then leaves a `Told` in its list. Nothing is left outside of that, so also not
by a forward pass that activation checkpointing repeats.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn


class Told(NamedTuple):
    """Of one call of a module."""

    units: int  # how much it read: calls are averaged by it
    losses: dict[str, tuple[Tensor, float]]  # mean over what it read, and weight; empty where nothing is learned
    figures: dict[str, Tensor]  # mean over what it read: a number, or a row of them


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[str, list[Told]]]:
    """By name of each module that has losses of its own: what it tells while this is open, in order of its calls."""
    found = {name: module for name, module in model.named_modules() if hasattr(module, "told")}
    heard: dict[str, list[Told]] = {name: [] for name in found}
    for name, module in found.items():
        module.told = heard[name]
    try:
        yield heard
    finally:
        for module in found.values():
            module.told = None
