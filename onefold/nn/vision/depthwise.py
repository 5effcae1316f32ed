"""Convolutions of each channel alone, whose gradient by the weight is written out for CPUs.

oneDNN takes ten times as long for the gradient by the weight as for the output or the gradient by the input. With
channels last and small sides, sums of shifted products are two to twenty times as fast: benchmarks/vision_step.py.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE, NARROW = 28, 96  # sides up to which, channels from which on the shifted products are faster
AT_ONCE = 2**18  # numbers of a piece, which should stay in the processor's cache


class DepthwiseConv(nn.Conv2d):
    """A convolution of `width` channels, each alone, by an odd `kernel`; sides are divided by `stride`, rounded up."""

    def __init__(self, width: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__(width, width, kernel, stride, padding=kernel // 2, groups=width, bias=bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        small = max(x.shape[2:]) <= LARGE and x.shape[1] >= NARROW and self.stride == (1, 1)
        if plain and small and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _Depthwise.apply(x, self.weight, self.bias)
        return super().forward(x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_x = d_weight = None
        if wants_x:
            # Looking around by the same weights from the other side, turned around.
            d_x = F.conv2d(gradient, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
        if wants_weight:
            d_weight = _shifted_products(x, gradient, weight.shape[-1])
        return d_x, d_weight, gradient.sum((0, 2, 3)) if wants_bias else None


def _shifted_products(
    x: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C H W"], kernel: int
) -> Float[Tensor, "C 1 k k"]:
    """Entry (u, v) of a channel: the sum of x, moved by (u, v) from the middle, times the gradient."""
    _, C, H, W = x.shape
    edge = kernel // 2
    gradient = gradient.permute(0, 2, 3, 1).contiguous()
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge))
    found = x.new_zeros(kernel, kernel, C)
    pictures = max(AT_ONCE // (C * H * W), 1)
    for piece, around in zip(gradient.split(pictures), x.split(pictures)):
        for u in range(kernel):
            for v in range(kernel):
                found[u, v] += (around[:, u : u + H, v : v + W] * piece).sum((0, 1, 2))
    return found.permute(2, 0, 1)[:, None]
