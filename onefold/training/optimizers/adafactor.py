"""Adafactor's step (Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5), without momentum.

Of the squares of a matrix's gradients only the means of rows and of columns are kept, whose product stands for them: of
an m×n matrix m + n numbers. Learning rates are relative: a weight moves by a share of its matrix's size.
"""

import torch
from torch import Tensor

from onefold.training.optimizers.groups import is_vector
from onefold.training.processes.shards import local, shard, whole


def memory(parameter: Tensor, rows: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of what is kept for a parameter; rows: see is_vector."""
    if is_vector(parameter, rows):
        return {"square": tuple(parameter.shape)}
    *front, last = parameter.shape
    return {"rows": tuple(front), "columns": (len(rows or (1,)), *front[:-1], last)}


def remember(kept: dict[str, Tensor], parameter: Tensor, rows: tuple[int, ...] | None) -> None:
    """Zeros for what is not kept yet: whole tensors, in every process."""
    for name, shape in memory(parameter, rows).items():
        if name not in kept:
            kept[name] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


def adafactor_step(group: dict, state: dict) -> None:
    """On whole tensors, one after the other: what is kept lies in every process, weights are moved in their shards."""
    t = group["steps"] - group["frozen_until"] + 1
    new = t ** -group["power"]  # share of the newest squares: at first all
    for parameter, rows in zip(group["params"], group["rows"]):
        if parameter.grad is None:
            continue
        own, kept = local([parameter])[0], state[parameter]
        remember(kept, parameter, rows)
        gradients = _parts(whole(local([parameter.grad])[0], parameter), rows)
        weights = _parts(whole(own, parameter), rows)
        if "square" in kept:
            directions = [_direction(gradients[0], kept["square"], new, group["eps"][0])]
        else:
            sides = zip(gradients, _parts(kept["rows"], rows, -1), kept["columns"])
            directions = [_factored(g, row, column, new, group["eps"][0]) for g, row, column in sides]
        for direction, weight in zip(directions, weights):
            direction /= (_size(direction) / group["clip"]).clamp(min=1)
            direction *= group["lr"] * _size(weight).clamp(min=group["eps"][1])
        if group["weight_decay"]:
            own.mul_(1 - group["lr"] * group["weight_decay"])
        own.sub_(shard(torch.cat(directions, -2) if rows else directions[0], parameter))


def _factored(gradient: Tensor, rows: Tensor, columns: Tensor, new: float, least: float) -> Tensor:
    square = gradient.square() + least
    rows.lerp_(square.mean(-1), new)
    columns.lerp_(square.mean(-2), new)
    return gradient * (rows / rows.mean(-1, keepdim=True)).rsqrt()[..., None] * columns.rsqrt()[..., None, :]


def _direction(gradient: Tensor, square: Tensor, new: float, least: float) -> Tensor:
    square.lerp_(gradient.square() + least, new)
    return gradient * square.rsqrt()


def _parts(tensor: Tensor, rows: tuple[int, ...] | None, dim: int = -2) -> tuple[Tensor, ...]:
    """Of matrices, or of what is kept of their rows, which is one dimension less."""
    return tensor.split(rows, dim) if rows else (tensor,)


def _size(tensor: Tensor) -> Tensor:
    """Root of the mean square."""
    return tensor.square().mean().sqrt()
