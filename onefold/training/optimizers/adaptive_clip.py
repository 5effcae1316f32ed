"""Adaptive gradient clipping: no unit's gradient may be large beside the unit's own weights.

    G_i ← λ · (‖W_i‖* / ‖G_i‖) · G_i    where ‖G_i‖ > λ · ‖W_i‖*,    ‖W_i‖* = max(‖W_i‖, 1e-3)

(NFNet, arXiv 2102.06171, equation 3). A unit i is a row of a matrix, the kernel of one output channel of a convolution,
a row of each matrix in a stack (three dimensions), or a whole vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onefold.core import dist
from onefold.training.processes.shards import local

SMALLEST = 1e-3  # of a unit's norm: weights that begin at zero could never move otherwise


@torch.no_grad()
def clip_units(parameters: Sequence[Tensor], limit: float) -> None:
    """Shrink the gradients of `parameters` in place.

    Under FSDP every process does its own shards, which hold whole rows; only vectors are spread, so their norms are
    added up over the processes.
    """
    if not parameters:
        return
    weights, gradients = (local(ts) for ts in (parameters, [p.grad for p in parameters]))
    weight_norms, gradient_norms = ([_unit_norms(t) for t in ts] for ts in (weights, gradients))
    spread = [i for i, p in enumerate(parameters) if p.ndim < 2 and isinstance(p, DTensor)]
    if spread:
        together = torch.stack([norms[i] for norms in (weight_norms, gradient_norms) for i in spread])
        whole = dist.all_sum(together.square()).sqrt()
        for i, weight_norm, gradient_norm in zip(spread, *whole.chunk(2)):
            weight_norms[i], gradient_norms[i] = weight_norm, gradient_norm
    torch._foreach_clamp_min_(weight_norms, SMALLEST)
    torch._foreach_mul_(weight_norms, limit)
    torch._foreach_clamp_min_(gradient_norms, 1e-12)
    torch._foreach_div_(weight_norms, gradient_norms)
    torch._foreach_clamp_max_(weight_norms, 1.0)
    torch._foreach_mul_(gradients, weight_norms)


def _unit_norms(tensor: Tensor) -> Tensor:
    """Norms of the units, in a shape that multiplies with `tensor`."""
    if tensor.ndim < 2:
        return torch.linalg.vector_norm(tensor)
    dims = -1 if tensor.ndim == 3 else tuple(range(1, tensor.ndim))
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
