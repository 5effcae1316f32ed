"""Linear layers, which spend most of a training step on three products: x·Wᵀ, its gradient by x, and that by W.

PyTorch multiplies fp32 matrices on x86 by MKL. oneDNN, which it brings along too, is faster at the first two (a tenth
where shapes suit both, a half where a width is no multiple of 16) and slower at the third: benchmarks/train_step.py.
"""

import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = platform.machine().lower() in ("x86_64", "amd64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ENOUGH = 128  # rows from which on handing the matrices to oneDNN costs little beside the product


class Linear(nn.Linear):
    """x·Wᵀ + b."""

    def forward(self, x: Float[Tensor, "*rows inward"]) -> Float[Tensor, "*rows outward"]:
        if torch.is_grad_enabled() and _suits_onednn(x, self.weight):
            return _Linear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def dense(self) -> Float[Tensor, "outward inward"]:
        """W, as those layers tell it, too, that store it otherwise."""
        return self.weight


def linear(
    x: Float[Tensor, "*rows inward"], weight: Float[Tensor, "outward inward"], bias: Tensor | None = None
) -> Float[Tensor, "*rows outward"]:
    """x·Wᵀ + b by the faster library; without gradients, for use inside of hand-written ones."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _traced(x, weight, bias) if torch.compiler.is_compiling() else _by_onednn(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            linear(gradient, weight.T) if wants_x else None,
            rows.T @ x.flatten(0, -2) if wants_weight else None,
            rows.sum(0) if ctx.has_bias and wants_bias else None,
        )


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return ONEDNN and plain and x.numel() >= ENOUGH * x.shape[-1]


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight if weight.T.is_contiguous() else weight.contiguous()  # oneDNN reads it either way without a copy
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


@torch.library.custom_op("onefold::linear", mutates_args=())
def _traced(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as one operation that torch.compile leaves alone: it would take oneDNN's for a frozen layer."""
    return _by_onednn(x, weight, bias)


@_traced.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])
