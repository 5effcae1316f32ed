"""Muon's step (Jordan 2024): momentum of each matrix, made orthogonal.

A matrix spread over processes is gathered for it, and each process makes its share of them orthogonal. Of a stack of
matrices (of experts) each process holds whole ones, and makes those orthogonal.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onefold.core import dist
from onefold.training.optimizers.rules import REMEMBERED, State, kept
from onefold.training.processes.shards import local, shard, whole


def muon_step(group: dict, state: State) -> None:
    """Momentum on shards, Newton-Schulz on whole matrices, the update on shards again."""
    rows, parameters = [], []
    for p, parts in zip(group["params"], group["rows"]):
        if p.grad is not None:
            parameters.append(p)
            rows.append(parts)
    if not parameters:
        return
    momenta = [kept(state, p, REMEMBERED["muon"])[0] for p in parameters]
    weights, gradients, own = (local(ts) for ts in (parameters, [p.grad for p in parameters], momenta))

    torch._foreach_lerp_(own, gradients, 1 - group["momentum"])
    directions = torch._foreach_lerp(gradients, own, group["momentum"]) if group["nesterov"] else list(own)
    updates: dict[int, Tensor] = {}
    for alone in (True, False):  # what lies in whole matrices on one process is made orthogonal there
        some = [i for i, p in enumerate(parameters) if (isinstance(p, DTensor) and p.ndim == 3) == alone]
        found = [directions[i] if alone else whole(directions[i], parameters[i]) for i in some]
        spread = not alone and any(isinstance(parameters[i], DTensor) for i in some)
        found = orthogonal_updates(found, [rows[i] for i in some], group, share=spread)
        updates |= {i: u if alone else shard(u, parameters[i]) for i, u in zip(some, found)}

    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, [updates[i] for i in range(len(weights))], alpha=-group["lr"])


def orthogonal_updates(directions: list[Tensor], rows: Iterable, group: dict, share: bool) -> list[Tensor]:
    """Each direction with every matrix in it made orthogonal and scaled. `share`: each process does its part of them.

    A parameter may hold several matrices: packed one below the other (`rows`: how many rows each has), in three
    dimensions stacked, or both. Matrices of the same shape, or of its transpose, go through Newton-Schulz together.
    """
    updates = [torch.zeros_like(d) for d in directions]
    buckets: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for direction, update, parts in zip(directions, updates, rows):
        for source, target in zip(_matrices(direction, parts), _matrices(update, parts)):
            shape = (min(source.shape), max(source.shape))
            buckets.setdefault(shape, []).append((source, target))
    processes, rank = (dist.world(), dist.rank()) if share else (1, 0)
    for pairs in buckets.values():
        pairs = pairs[rank::processes]
        wide = [source if source.shape[0] <= source.shape[1] else source.mT for source, _ in pairs]
        # One core gains nothing from a batch and loses the better blocking of single products (measured: 10-25%).
        together = [torch.stack(wide)] if pairs and wide[0].is_cuda else wide
        results = [matrix for batch in together for matrix in _each(newton_schulz(batch, group["iterations"]))]
        for result, (source, target) in zip(results, pairs):
            m, n = source.shape
            scale = 0.2 * max(m, n) ** 0.5 if group["scale"] == "rms" else max(1.0, m / n) ** 0.5
            target.copy_((result if m <= n else result.mT) * scale)
    if processes > 1:  # zeros from all but the process that did a matrix: the sum is exact
        flat = dist.all_sum(torch.cat([u.flatten() for u in updates]))
        updates = [part.view_as(u) for part, u in zip(flat.split([u.numel() for u in updates]), updates)]
    return updates


def newton_schulz(x: Tensor, iterations: int = 5) -> Tensor:
    """The nearest orthogonal matrix, roughly: singular values of x [..., m, n], m ≤ n, go to about 0.7 to 1.2.

    A quintic iteration with its slope at zero made as steep as it goes (Jordan 2024); bfloat16 suffices on a GPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    add_product = torch.baddbmm if x.ndim == 3 else torch.addmm
    dtype = x.dtype
    if x.is_cuda:
        x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # Frobenius norm 1 bounds the largest singular value by 1
    for _ in range(iterations):
        square = x @ x.mT
        x = add_product(x, add_product(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(dtype)


def _matrices(tensor: Tensor, rows: tuple[int, ...] | None) -> list[Tensor]:
    if tensor.ndim > 3:  # further dimensions (of a convolution) count as columns
        return [tensor.flatten(1)]
    return [part for matrix in _each(tensor) for part in (matrix.split(rows) if rows else [matrix])]


def _each(tensor: Tensor) -> Iterable[Tensor]:
    return tensor.unbind() if tensor.ndim == 3 else [tensor]
