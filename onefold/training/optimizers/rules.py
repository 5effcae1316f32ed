"""The rules that groups of parameters follow: what is kept for each parameter, and the updates of AdamW and SGD.

Muon's and Adafactor's lie in files of their own. A step is a function of a group of the optimizer and of what is kept
for its parameters; it works on whole lists of tensors and on each process's own shards.
"""

from collections.abc import MutableMapping
from math import prod

import torch
from torch import Tensor

from onefold.training.optimizers.adafactor import memory
from onefold.training.processes.shards import local

State = MutableMapping[Tensor, dict[str, Tensor]]  # of each parameter, by name

REMEMBERED = {"adamw": ("mean", "square"), "muon": ("momentum",), "sgd": ("momentum",), "adafactor": (), "none": ()}


def remembered(group: dict) -> tuple[str, ...]:
    """Names of the tensors, each of a parameter's size, that are kept for every parameter of a group."""
    return REMEMBERED[group["rule"]] + (("average",) if group["ema"] else ())


def moves(group: dict) -> bool:
    """Whether the next update moves a group's parameters."""
    return group["steps"] >= group["frozen_until"]


def memory_bytes(group: dict) -> int:
    """All that is kept for the parameters of a group."""
    own = sum(p.nbytes * len(remembered(group)) for p in group["params"])
    shared = zip(group["params"], group["rows"]) if group["rule"] == "adafactor" else ()
    return own + sum(p.element_size() * prod(shape) for p, rows in shared for shape in memory(p, rows).values())


def kept(state: State, parameter: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """What is kept for a parameter by these names, zeros at first."""
    mine = state[parameter]
    for name in names:
        if name not in mine:
            mine[name] = torch.zeros_like(parameter)
    return tuple(mine[name] for name in names)


def adamw_step(group: dict, state: State) -> None:
    """Algorithm 2 of arXiv 1711.05101, on the processes' own shards."""
    parameters = [p for p in group["params"] if p.grad is not None]
    if not parameters:
        return
    means, squares = zip(*(kept(state, p, REMEMBERED["adamw"]) for p in parameters))
    gradients = [p.grad for p in parameters]
    weights, gradients, means, squares = (local(ts) for ts in (parameters, gradients, means, squares))
    (beta1, beta2), lr = group["betas"], group["lr"]
    t = group["steps"] - group["frozen_until"] + 1  # moments begin with the first update that is theirs

    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_div_(divisors, (1 - beta2**t) ** 0.5)
    torch._foreach_add_(divisors, group["eps"])
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
    torch._foreach_addcdiv_(weights, means, divisors, -lr / (1 - beta1**t))


def sgd_step(group: dict, state: State) -> None:
    """On the processes' own shards."""
    parameters = [p for p in group["params"] if p.grad is not None]
    if not parameters:
        return
    momenta = [kept(state, p, REMEMBERED["sgd"])[0] for p in parameters]
    weights, gradients, momenta = (local(ts) for ts in (parameters, [p.grad for p in parameters], momenta))
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, gradients)
    if group["nesterov"]:
        updates = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
    else:
        updates = momenta
    torch._foreach_add_(weights, updates, alpha=-group["lr"])
