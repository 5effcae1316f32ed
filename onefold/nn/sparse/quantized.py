"""Experts' matrices in four or eight bits: each is stored and computed with as any other (nn/quantized.py)."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.nn.linear import Linear, linear
from onefold.nn.quantized import QuantizedLinear, Scheme
from onefold.nn.sparse.experts import GroupedLinear
from onefold.nn.sparse.grouped import of_rows


class QuantizedGroupedLinear(nn.Module):
    """x·W_eᵀ + b_e with each expert's W_e a `QuantizedLinear`.

    One expert's matrix at a time is made anew as plain numbers, those of experts without tokens not at all.
    """

    def __init__(self, original: GroupedLinear, scheme: Scheme, block: int = 64, double: bool = True):
        super().__init__()
        self.experts, self.in_features, self.out_features = (
            original.experts,
            original.in_features,
            original.out_features,
        )
        self.scheme, self.block, self.double = scheme, block, double
        self.each = nn.ModuleList(QuantizedLinear(_of(w), scheme, block, double) for w in original.weight)
        self.bias, self.packed = original.bias, original.packed

    @torch.compiler.disable  # which rows are whose is known in Python only
    def forward(self, x: Float[Tensor, "M inward"], ends: Int[Tensor, " E"]) -> Float[Tensor, "M outward"]:
        kind = x.device.type
        if x.is_meta:  # shapes, and as many operations
            return self.each[0](x)
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = _Products.apply(x, ends, self)
        return y if self.bias is None else y + of_rows(self.bias, ends, len(x)).to(y.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "E outward inward"]:
        """All matrices as plain numbers; `dtype` None: as they were before."""
        return torch.stack([expert.dense(dtype) for expert in self.each])

    @property
    def weight(self) -> Float[Tensor, "E outward inward"]:
        return self.dense()

    @property
    def codes(self) -> Tensor:
        """Those of all experts, one after the other."""
        return torch.cat([expert.codes for expert in self.each])

    @property
    def bytes(self) -> int:
        """What the matrices take, scales and all."""
        return sum(expert.bytes for expert in self.each)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ends, layer):
        ctx.ends, ctx.layer = ends.tolist(), layer  # nothing is kept for the backward pass but what is there anyway
        return _products(x, ctx.ends, layer, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return _products(gradient, ctx.ends, ctx.layer, turned=True), None, None


def _products(x: Tensor, ends: list[int], layer: QuantizedGroupedLinear, turned: bool) -> Tensor:
    """Each expert's rows times its matrix, or `turned` times that as it lies; zeros behind them."""
    y = x.new_zeros(len(x), layer.in_features if turned else layer.out_features)
    for expert, (start, end) in zip(layer.each, pairwise([0, *ends]), strict=True):
        if end > start:
            matrix = expert.dense(x.dtype)
            y[start:end] = linear(x[start:end], matrix.T if turned else matrix)
    return y


def _of(matrix: Tensor) -> Linear:
    """A layer of one expert's matrix."""
    with torch.device("meta"):
        layer = Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight = nn.Parameter(matrix.detach(), requires_grad=False)
    return layer
