"""A run whose model writes its own data: what it is to stay near, and what writing needs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onefold.adapt.every import is_adapter
from onefold.adapt.surgery import switch_of
from onefold.core.errors import UserError
from onefold.infer.rollouts.data import RolloutDataset
from onefold.infer.rollouts.rewards import total
from onefold.infer.rollouts.rollout import Policy
from onefold.training import reference
from onefold.training.processes import parallel

if TYPE_CHECKING:
    from onefold.training.run import Run

Near = Callable[[], AbstractContextManager[nn.Module]]  # the reference, to be asked inside of it


def begins_as_reference(run: "Run", objective: Any) -> bool:
    """Whether the model, as the run begins with it, has to be kept beside the one that learns."""
    compares = getattr(objective, "compares", False)
    in_full = any(getattr(step, "also", ()) for step in run.adapt)  # which no switch takes back
    adapters_only = any(map(is_adapter, run.adapt)) and not in_full
    return compares and reference.NAME not in run.frozen and not adapters_only


def near(run: "Run", objective: Any, dataset: RolloutDataset, model: nn.Module, device: torch.device) -> Near | None:
    """What the policy is to stay near, if the objective compares it with anything: `frozen.reference`, or else `model`,
    as the run begins with it. Where only adapters learn, that is the model without them, and no second one.

    Errors: UserError when a reference reads other tokens.
    """
    if not getattr(objective, "compares", False):
        return None
    if reference.NAME in run.frozen:
        other = reference.opened(run, reference.NAME, dataset, device)
    elif begins_as_reference(run, objective):
        other = deepcopy(model).requires_grad_(False).to(device)
    else:
        return lambda: without_adapters(model)
    return lambda: nullcontext(other)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before it was adapted."""
    switch = switch_of(model)
    active = switch.active
    switch.use(None)
    try:
        yield model
    finally:
        switch.use(active)


def policy(run: "Run", objective: Any, model: nn.Module, near: Near | None, device: torch.device, rows: int) -> Policy:
    """What writes the batches of a run. rows: that fit the machine when they are learned from.

    Errors: UserError for an objective that cannot judge what was written.
    """
    if not hasattr(objective, "judge"):
        raise UserError(
            f"objective {run.objective.kind} judges no answers: set objective.kind to grpo, ppo or imitation"
        )
    score = total(run.data.rewards, device)
    bf16, whole = run.trainer.bf16(device), lambda: parallel.whole(model, run.trainer.parallel)
    return Policy(model, objective, score, device, near, bf16, rows, whole)
