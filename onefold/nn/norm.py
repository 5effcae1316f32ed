"""Normalisation over the width."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.core.config import Config


class LayerNormConfig(Config):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450)."""

    kind: Literal["layer"] = "layer"
    eps: float = 1e-5
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)


class RMSNormConfig(Config):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    kind: Literal["rms"] = "rms"
    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        return RMSNorm(width, self.eps)


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the statistics in fp32 whatever the type of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if x.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _TrainedRMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class _TrainedRMSNorm(torch.autograd.Function):
    """The same with its gradient written out: torch has no fused one on the CPU, and autograd's takes twice as long."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        ctx.dtype = x.dtype
        return (unit * weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        unit, scale, weight = ctx.saved_tensors
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (gradient * unit).flatten(0, -2).sum(0).to(weight.dtype)
        d_unit = gradient * weight
        radial = (d_unit * unit).mean(-1, keepdim=True)
        return torch.addcmul(d_unit.to(unit.dtype), unit, radial, value=-1).mul_(scale).to(ctx.dtype), d_weight, None
