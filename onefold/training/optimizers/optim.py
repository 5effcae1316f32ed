"""AdamW, Muon, SGD and Adafactor in one optimizer, over groups of parameters made from one table (groups.py).

A config's own `groups` stand before the default rows:

    AdamW   every matrix decays; vectors (norms, biases, those of each expert) do not
    Muon    the same, and matrices inside blocks follow Muon; embeddings, heads, norms and biases stay with AdamW
    SGD, Adafactor   every matrix decays; vectors do not

Weight decay is decoupled, w ← (1 - lr · decay) · w before the update, but for SGD, where it is a part of the gradient,
as everybody who publishes its settings means it. All arithmetic is on whole lists of tensors
(torch._foreach_*) and, under FSDP, on each process's own shards; only Muon needs whole matrices and gathers them.

`ema` keeps a moving average of all weights beside them. It begins at zero and is divided by 1 - ema^updates, as Adam's
moments are: an average of the weights after every update so far, in which where they began has no part. The running
averages of batch norm are averaged in the same way: those of the newest weights are not what averaged weights meet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.interop.table import own_buffers
from onefold.training.optimizers.adafactor import adafactor_step, remember
from onefold.training.optimizers.adaptive_clip import clip_units
from onefold.training.optimizers.groups import (
    MUON_IN_BLOCKS,
    VECTORS_DO_NOT_DECAY,
    Group,
    Rule,
    check_frozen,
    is_vector,
    layer_decay,
    settings,
)
from onefold.training.optimizers.muon import muon_step
from onefold.training.optimizers.offload import Offload
from onefold.training.optimizers.rules import State, adamw_step, kept, moves, remembered, sgd_step
from onefold.training.optimizers.schedule import Schedule
from onefold.training.processes.shards import Held, held, local, put

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Config):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    adaptive_clip: Positive | None = None  # largest gradient of a unit, relative to its weights: adaptive_clip.py
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # lr · layer_decay^(layers above the parameter)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of a moving average of the weights
    offload: bool = False  # keep moments and averages in the host's memory, not the GPU's: offload.py
    groups: tuple[Group, ...] = ()

    def build(self, model: nn.Module) -> "Optimizer":
        adamw = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        table = (*self.groups, *VECTORS_DO_NOT_DECAY)
        return Optimizer(model, table, {"adamw": adamw}, self)


class MuonConfig(Config):
    """Muon (Jordan 2024): momentum, orthogonalised by five Newton-Schulz steps, for the matrices inside blocks.

    `scale` makes an orthogonal m×n update U as large as it should be. "rms": 0.2 · sqrt(max(m, n)) · U has the root
    mean square 0.2 that AdamW's updates have, so that AdamW's learning rates serve (arXiv 2502.16982, section 2.2).
    "spectral": sqrt(max(1, m / n)) · U, as Muon was first published; its learning rates are about 0.02.
    """

    kind: Literal["muon"] = "muon"
    lr: Positive = 3e-3
    momentum: Share = 0.95
    nesterov: bool = True
    iterations: Annotated[int, Field(ge=1)] = 5
    scale: Literal["rms", "spectral"] = "rms"
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    adamw_lr: Positive | None = None  # for all that is not a matrix inside a block; None: the same
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Positive = 1e-8
    adaptive_clip: Positive | None = None  # these four as in AdamWConfig
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    offload: bool = False
    groups: tuple[Group, ...] = ()

    def build(self, model: nn.Module) -> "Optimizer":
        names = ("lr", "momentum", "nesterov", "iterations", "scale", "weight_decay")
        muon = {name: getattr(self, name) for name in names}
        lr = self.adamw_lr or self.lr
        adamw = {"lr": lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        table = (*self.groups, *MUON_IN_BLOCKS, *VECTORS_DO_NOT_DECAY)
        rules: dict[Rule, dict] = {"adamw": adamw, "muon": muon}
        return Optimizer(model, table, rules, self)


class SGDConfig(Config):
    """Momentum as torch.optim.SGD has it: v ← momentum · v + g; w ← w - lr · (g + momentum · v), or lr · v."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adaptive_clip: Positive | None = None  # these four as in AdamWConfig
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    offload: bool = False
    groups: tuple[Group, ...] = ()

    def build(self, model: nn.Module) -> "Optimizer":
        sgd = {name: getattr(self, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
        table = (*self.groups, Group(rule="sgd"), *VECTORS_DO_NOT_DECAY)
        return Optimizer(model, table, {"sgd": sgd}, self)


class AdafactorConfig(Config):
    """Adafactor (arXiv 1804.04235) as T5 was trained: no momentum, and learning rates that are relative.

    Each matrix moves by lr times the root mean square of its weights (at least eps[1]); t^-power is the share of the
    newest squares in the t-th update; an update whose root mean square exceeds `clip` is scaled down to that.
    """

    kind: Literal["adafactor"] = "adafactor"
    lr: Positive = 1e-2
    power: Annotated[float, Field(gt=0, le=1)] = 0.8
    clip: Positive = 1.0
    eps: tuple[Positive, Positive] = (1e-30, 1e-3)  # added to squares; the least size of weights
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adaptive_clip: Positive | None = None  # these four as in AdamWConfig
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    offload: bool = False
    groups: tuple[Group, ...] = ()

    def build(self, model: nn.Module) -> "Optimizer":
        adafactor = {name: getattr(self, name) for name in ("lr", "power", "clip", "eps", "weight_decay")}
        table = (*self.groups, Group(rule="adafactor"), *VECTORS_DO_NOT_DECAY)
        return Optimizer(model, table, {"adafactor": adafactor}, self)


class Optimizer(torch.optim.Optimizer):
    """One torch optimizer whose groups each follow a rule. `rules`: the settings of each, before a row's multipliers.

    A group's `peak` is its learning rate before the schedule; `schedule(multiplier)` sets its `lr`, and the `lr` of
    the optimizer itself, which is what a log shows. `steps` counts a group's updates, those in which it was frozen too.
    """

    def __init__(
        self,
        model: nn.Module,
        table: tuple[Group, ...],
        rules: dict[Rule, dict],
        config: "AdamWConfig | MuonConfig | SGDConfig | AdafactorConfig",
    ):
        packed = _packed_rows(model)
        groups: dict[tuple, dict] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            told = settings(name, is_vector(parameter, packed.get(name)), table)
            lr = told.lr * layer_decay(model, name, config.layer_decay)
            limit = (config.adaptive_clip or 0.0) * told.adaptive_clip
            key = (told.rule, lr, told.decay, limit, told.schedule, told.frozen_until)
            group = groups.setdefault(key, {"params": [], "names": [], "rows": []})
            group["params"].append(parameter)
            group["names"].append(name)
            group["rows"].append(packed.get(name))
        for (rule, lr, decay, limit, schedule, frozen_until), group in groups.items():
            group |= rules[rule] | {"rule": rule, "steps": 0, "ema": config.ema}
            group |= {"adaptive_clip": limit, "schedule": schedule, "frozen_until": frozen_until}
            group["lr"] = group["peak"] = group["lr"] * lr
            group["weight_decay"] = group["weight_decay"] * decay if decay else 0.0
        if not groups:
            raise UserError("nothing is left to train: every parameter is frozen; let adapt end with lora, say")
        check_frozen(groups.values())
        buffers = {name: b for name, b in own_buffers(model).items() if b.is_floating_point()} if config.ema else {}
        told = [*groups.values(), *([_followed(buffers, config.ema)] if buffers else [])]
        super().__init__(told, {})
        self.offload = Offload(self.param_groups) if config.offload else None
        self.peak = self.lr = next(reversed(rules.values()))["lr"]  # of the rule that the config is named after

    def schedule(self, multiplier: float | Callable[[Schedule | None], float]) -> None:
        """Set learning rates: times a number for all, or times what a function makes of a group's own schedule.

        The function is given None where a group has none and follows the run's. Where one has, it takes a function.
        """
        multiply = multiplier if callable(multiplier) else lambda own: multiplier
        assert callable(multiplier) or not any(group["schedule"] for group in self.param_groups)
        self.lr = self.peak * multiply(None)
        for group in self.param_groups:
            group["lr"] = group["peak"] * multiply(group["schedule"])

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter that has a gradient; without a closure, since losses here span micro-batches."""
        assert closure is None, "a closure is not supported"
        if self.offload and not self.state:
            self.make_state()
        for group, state in self.offload.visit() if self.offload else ((g, self.state) for g in self.param_groups):
            self._move(group, state)
        for group in self.param_groups:
            group["steps"] += 1

    def _move(self, group: dict, state: State) -> None:
        if moves(group):
            if group["adaptive_clip"]:
                clip_units([p for p in group["params"] if p.grad is not None], group["adaptive_clip"])
            STEPS[group["rule"]](group, state)
        if group["ema"]:
            averages = [kept(state, p, ("average",))[0] for p in group["params"]]
            torch._foreach_lerp_(local(averages), local(group["params"]), 1 - group["ema"])

    def averages(self) -> "dict[str, Tensor | Held]":
        """The moving average of each trained parameter and each buffer of floating-point numbers, by name.

        Nothing where none is kept, or before an update.
        """
        return {
            name: held(self.state[parameter]["average"] / (1 - group["ema"] ** group["steps"]), parameter)
            for group in self.param_groups
            if group["ema"] and group["steps"]
            for name, parameter in zip(group["names"], group["params"])
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averages for weights inside (as it is where there are none); its own come back after."""
        averages = self.averages()
        places = [
            (parameter.detach(), averages[name])  # which shares the count of changes that caches go by
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"])
            if name in averages
        ]
        before = [held(local([w])[0].cpu(), w) if self.offload and w.is_cuda else w.clone() for w, _ in places]
        for weight, average in places:
            put(average, weight)
        try:
            yield
        finally:
            for (weight, _), own in zip(places, before):
                put(own, weight)

    def named_state(self) -> "dict[str, Tensor | Held]":
        """All that the optimizer remembers, by parameter: "blocks.0.out.weight.momentum" → tensor.

        What no update has needed yet (of frozen parameters, say) is zero.
        """
        self.make_state()
        return {
            f"{name}.{key}": held(value, parameter) if key in remembered(group) else value
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"])
            for key, value in self.state[parameter].items()
        }

    def make_state(self) -> None:
        """Allocate what the first step would, so that a saved state has tensors to be copied into."""
        if self.offload:
            self.state.update(self.offload.state())
            return
        for group in self.param_groups:
            for parameter, rows in zip(group["params"], group["rows"]):
                kept(self.state, parameter, remembered(group))
                if group["rule"] == "adafactor":
                    remember(self.state[parameter], parameter, rows)


STEPS = {"adamw": adamw_step, "muon": muon_step, "sgd": sgd_step, "adafactor": adafactor_step}


def _followed(buffers: dict[str, Tensor], ema: float | None) -> dict:
    """A group that is never moved, only averaged."""
    names, tensors = list(buffers), list(buffers.values())
    still = {"rule": "none", "frozen_until": inf, "adaptive_clip": 0.0, "schedule": None, "lr": 0.0, "peak": 0.0}
    return {"params": tensors, "names": names, "rows": [None] * len(names), "steps": 0, "ema": ema, **still}


def local_gradients(optimizer: Optimizer) -> list[Tensor]:
    """What this process holds of each gradient that the next update follows."""
    moving = [group for group in optimizer.param_groups if moves(group)]
    return local(p.grad for group in moving for p in group["params"] if p.grad is not None)


def _packed_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter → the rows of each matrix packed in it, none in stacked vectors, as modules say in their `packed`."""
    return {
        f"{path}.{name}" if path else name: rows
        for path, module in model.named_modules()
        for name, rows in getattr(module, "packed", {}).items()
    }
