"""Weights in four or eight bits, and a linear layer that computes with them.

A four-bit weight is a place in a table of 16 numbers from -1 to 1, times a scale that a block of weights has in common,
the largest magnitude in it. Two weights make a byte, the first in its high half. Scales themselves may be stored in
eight bits ("double quantisation"): their mean is taken off, and the rest are places in a table of 256 numbers times a
scale for 256 of them. So a weight costs 4 + 8/64 + 32/(64 · 256) = 4.127 bits (arXiv 2305.14314, section 3).

    nf4   quantiles of a normal distribution, with an exact zero: as many weights at each if they are normal
    fp4   a sign, two bits of exponent, one of mantissa
    int4  evenly spaced: 15 numbers
    int8  evenly spaced, a scale for each row (arXiv 2208.07339, section 2.1)

Tables, rounding and the order of bytes are those of bitsandbytes, so weights quantised there and here are the same.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.nn.linear import linear

Scheme = Literal["nf4", "fp4", "int4", "int8"]
# In order of the code. NF4: arXiv 2305.14314, appendix E. FP4's 0.0625, 2, 3, 4, 6, 8 and 12 in twelfths.
_FP4 = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
TABLES: dict[str, tuple[float, ...]] = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    "fp4": (*_FP4, *(-value for value in _FP4)),
    "int4": (*(n / 7 for n in range(-7, 8)), 1.0),
}
SCALES_BLOCK = 256  # scales that share a scale
PART = 2**18  # bytes of codes that are taken at a time: little memory beside the weights


class Scales(NamedTuple):
    """The scales of blocks: plain, or in eight bits with the scales and the mean that they need."""

    values: Tensor  # Float[blocks], or UInt8[blocks]
    outer: Tensor | None = None  # Float[ceil(blocks / 256)]
    mean: Tensor | None = None  # Float[]


def quantize(weight: Float[Tensor, "..."], scheme: Scheme, block: int = 64) -> tuple[UInt8[Tensor, " bytes"], Tensor]:
    """Codes of a four-bit scheme, two in a byte, and the scale of each block of `block` weights. Float[blocks].

    Weights are taken row after row; the last block may be shorter.
    """
    flat = weight.detach().flatten()
    order, bounds = _bounds(scheme, flat.device)
    codes = torch.empty(-(-len(flat) // 2), dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-len(flat) // block), device=flat.device)
    part = _part(codes, block)
    for start in range(0, len(codes), part):
        few = flat[2 * start : 2 * (start + part)].float()
        blocks = F.pad(few, (0, -len(few) % block)).view(-1, block)
        largest = blocks.abs().amax(1)
        scaled = (blocks * (1 / largest.clamp(min=1e-38))[:, None]).clamp_(-1, 1).flatten()
        found = order[torch.bucketize(scaled[: len(few) + len(few) % 2], bounds, out_int32=True)]
        codes[start : start + part] = (found[::2] << 4) | found[1::2]
        scales[2 * start // block :][: len(largest)] = largest
    return codes, scales


def dequantize(
    codes: UInt8[Tensor, " bytes"], scales: Float[Tensor, " blocks"], scheme: Scheme, block: int = 64
) -> Float[Tensor, " n"]:
    """What `quantize` made codes of, rounded to the table: as many weights as whole blocks hold."""
    table = _pairs(scheme, codes.device)
    codes = F.pad(codes, (0, -2 * len(codes) % block // 2))
    pairs = torch.empty(len(codes), dtype=table.dtype, device=codes.device)
    weights = pairs.view(torch.float32).view(-1, block)
    part = _part(codes, block)
    for start in range(0, len(codes), part):
        stop = start + part
        torch.index_select(table, 0, codes[start:stop].int(), out=pairs[start:stop])
        rows = slice(2 * start // block, 2 * stop // block)
        weights[rows] *= scales[rows, None]
    return weights.flatten()


def quantize_scales(scales: Float[Tensor, " blocks"]) -> Scales:
    """Scales in eight bits: double quantisation."""
    mean = scales.mean()
    blocks = F.pad(scales - mean, (0, -len(scales) % SCALES_BLOCK)).view(-1, SCALES_BLOCK)
    outer = blocks.abs().amax(1)
    table = dynamic_table(scales.device)
    scaled = (blocks * (1 / outer.clamp(min=1e-38))[:, None]).clamp_(-1, 1).flatten()[: len(scales)]
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2, out_int32=True)
    return Scales(codes.to(torch.uint8), outer, mean)


def dequantize_scales(scales: Scales) -> Float[Tensor, " blocks"]:
    """The scales as plain numbers."""
    if scales.outer is None:
        return scales.values
    values = dynamic_table(scales.values.device)[scales.values.int()]
    outer = scales.outer.repeat_interleave(SCALES_BLOCK)[: len(values)]
    return values * outer + scales.mean


def quantize_rows(weight: Float[Tensor, "rows columns"]) -> tuple[Tensor, Float[Tensor, " rows"]]:
    """Eight-bit codes, Int8[rows, columns], of which 127 stands for the scale of the row."""
    weight = weight.detach().float()
    scales = weight.abs().amax(1)
    return (weight * (127 / scales.clamp(min=1e-38))[:, None]).round().to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Float[Tensor, " rows"]) -> Float[Tensor, "rows columns"]:
    """The weights that `quantize_rows` made Int8[rows, columns] of, rounded."""
    return codes.float().mul_(scales[:, None]).mul_(1 / 127)


class QuantizedLinear(nn.Module):
    """x·Wᵀ + b with W in `scheme`, made anew as plain numbers in every pass and kept in none.

    The gradient by x is exact for the rounded W; W itself is not trained. Its codes are no part of a state dict: they
    are made of the weights of a model that lies elsewhere. Numbers come in the dtype that W had, or that of x.
    """

    def __init__(self, original: nn.Linear, scheme: Scheme, block: int = 64, double: bool = True):
        super().__init__()
        weight = original.weight
        self.out_features, self.in_features = weight.shape
        self.scheme, self.block, self.double, self.dtype = scheme, block, double, weight.dtype
        if scheme == "int8":
            codes, plain = quantize_rows(weight)
        else:
            codes, plain = quantize(weight, scheme, block)
        scales = quantize_scales(plain) if double and scheme != "int8" else Scales(plain)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales.values, persistent=False)
        self.register_buffer("outer_scales", scales.outer, persistent=False)
        self.register_buffer("mean", scales.mean, persistent=False)
        self.bias = original.bias

    def forward(self, x: Float[Tensor, "*rows inward"]) -> Float[Tensor, "*rows outward"]:
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = _Quantized.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "outward inward"]:
        """W as plain numbers; `dtype` None: as it was before."""
        if self.scheme == "int8":
            weight = dequantize_rows(self.codes, self.scales)
        else:
            scales = dequantize_scales(Scales(self.scales, self.outer_scales, self.mean))
            flat = dequantize(self.codes, scales, self.scheme, self.block)
            weight = flat[: self.out_features * self.in_features].view(self.out_features, self.in_features)
        return weight.to(dtype or self.dtype)

    def _apply(self, fn, recurse=True):
        """Scales keep their precision whatever dtype the model is moved to."""
        scales = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        for name, before in scales.items():
            after = self._buffers[name]
            self._buffers[name] = after if after.dtype == before.dtype else before.to(after.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    @property
    def weight(self) -> Float[Tensor, "outward inward"]:
        """For those who multiply themselves (losses by chunks of the vocabulary)."""
        return self.dense()

    @property
    def bytes(self) -> int:
        """What W takes, scales and all."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        bits = 8 * self.bytes / (self.in_features * self.out_features)
        return f"{self.in_features}, {self.out_features}, {self.scheme}, {bits:.3f} bits"


class _Quantized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer  # not a saved tensor: nothing is kept for the backward pass but what is there anyway
        return linear(x, layer.dense(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return linear(gradient, ctx.layer.dense(gradient.dtype).T), None


@cache
def dynamic_table(device: torch.device) -> Float[Tensor, "256"]:
    """Eight bits with an exponent of any length: zero, one, and in each power of ten evenly spaced numbers, twice as
    many as in the one below (arXiv 1511.04561, section 2.2; 2110.02861, figure 2). In order."""
    middles = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    positive = torch.cat(middles)
    return torch.cat((-positive.flip(0), torch.zeros(1), positive, torch.ones(1))).to(device)


def _part(codes: Tensor, block: int) -> int:
    """How many bytes of codes to take at a time: on a CPU few, whole blocks."""
    return max(1, PART // block) * block if codes.is_cpu else max(1, len(codes))


@cache
def _bounds(scheme: Scheme, device: torch.device) -> tuple[Shaped[Tensor, "16"], Float[Tensor, "15"]]:
    """Codes in the order of their numbers, and the middles between those."""
    table = torch.tensor(TABLES[scheme])
    order = table.argsort(stable=True)
    table = table[order]
    return order.to(torch.uint8).to(device), ((table[:-1] + table[1:]) / 2).to(device)


@cache
def _pairs(scheme: Scheme, device: torch.device) -> Shaped[Tensor, "256"]:
    """For each byte the two numbers that it stands for, as one element of 64 bits: one look-up for two weights."""
    table = torch.tensor(TABLES[scheme])
    return torch.cartesian_prod(table, table).view(torch.int64).flatten().to(device)
