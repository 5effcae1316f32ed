"""Experts' MLPs on a CPU, expert after expert: both products and what bends between them, while the numbers are near.

Layer by layer, all tokens' inner activations are written to memory and read again several times over; here they are
once, and what comes of bending is computed anew in the backward pass, by autograd itself.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from onefold.nn.linear import linear

ROWS = 1024  # of an expert's at a time: their inner activations stay in a cache


def grouped_mlp(
    x: Float[Tensor, "M D"],
    ends: Int[Tensor, " E"],
    inner: tuple[Float[Tensor, "E I D"], Float[Tensor, "E I"] | None],
    out: tuple[Float[Tensor, "E D H"], Float[Tensor, "E D"] | None],
    bend: Callable[[Tensor], Tensor],  # [*, I] → [*, H]
) -> Float[Tensor, "M D"]:
    """W_out · bend(W_in · x) of each row's expert, sorted as in grouped.py; `inner` and `out`: matrices and biases."""
    return _GroupedMLP.apply(x, ends, *inner, *out, bend)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether this is the way to train experts with such weights: on a CPU, in full precision, not compiled."""
    full = x.is_cpu and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    busy = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return full and not busy and torch.is_grad_enabled()


class _GroupedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ends, inner, inner_bias, out, out_bias, bend):
        both, y = x.new_empty(len(x), inner.shape[1]), x.new_empty(len(x), out.shape[1])
        bounds = [0, *ends.tolist()]
        for e, _, rows in _parts(bounds):
            both[rows] = linear(x[rows], inner[e], None if inner_bias is None else inner_bias[e])
            y[rows] = linear(bend(both[rows]), out[e], None if out_bias is None else out_bias[e])
        y[bounds[-1] :] = 0
        ctx.save_for_backward(x, both, inner, out)
        ctx.bounds, ctx.bend = bounds, bend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, both, inner, out = ctx.saved_tensors
        by_x, _, by_inner, by_inner_bias, by_out, by_out_bias, _ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        d_x = torch.empty_like(x) if by_x else None
        d_inner, d_inner_bias = _unwritten(inner, by_inner, by_inner_bias, ctx.bounds)
        d_out, d_out_bias = _unwritten(out, by_out, by_out_bias, ctx.bounds)
        for e, first, rows in _parts(ctx.bounds):
            slope, old = gradient[rows], 0 if first else 1
            with torch.enable_grad():
                before = both[rows].detach().requires_grad_()
                bent = ctx.bend(before)
            if by_out:
                torch.addmm(d_out[e], slope.T, bent.detach(), beta=old, out=d_out[e])
            if by_out_bias:
                d_out_bias[e] += slope.sum(0)
            if not (by_x or by_inner or by_inner_bias):
                continue
            (slope,) = torch.autograd.grad(bent, before, linear(slope, out[e].T))
            if by_inner:
                torch.addmm(d_inner[e], slope.T, x[rows], beta=old, out=d_inner[e])
            if by_inner_bias:
                d_inner_bias[e] += slope.sum(0)
            if by_x:
                d_x[rows] = linear(slope, inner[e].T)
        if by_x:
            d_x[ctx.bounds[-1] :] = 0
        return d_x, None, d_inner, d_inner_bias, d_out, d_out_bias, None


def _parts(bounds: list[int]) -> Iterator[tuple[int, bool, slice]]:
    """(expert, whether these are its first rows, rows), a number of rows at a time."""
    for e, (start, end) in enumerate(pairwise(bounds)):
        for row in range(start, end, ROWS):
            yield e, row == start, slice(row, min(end, row + ROWS))


def _unwritten(
    weight: Tensor, wanted: bool, bias_wanted: bool, bounds: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    """Room for the gradients of matrices, zeros for experts without rows, and zeros for those of biases."""
    room = torch.empty_like(weight) if wanted else None
    if room is not None:
        for e, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                room[e] = 0
    return room, weight.new_zeros(weight.shape[:2]) if bias_wanted else None
