"""Products of many matrices, each with rows of its own: rows up to ends[0] meet the first matrix, and so on.

Tokens are sorted by expert and nothing is padded or dropped for it, as in MegaBlocks (arXiv 2211.15841); its sparse
blocks are a grouped matrix product here.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def grouped_linear(
    x: Float[Tensor, "M inward"],
    weight: Float[Tensor, "E outward inward"],
    bias: Float[Tensor, "E outward"] | None,
    ends: Int[Tensor, " E"],
) -> Float[Tensor, "M outward"]:
    """x·W_eᵀ + b_e for the rows of each e, in the order of e; zeros in rows from ends[-1] on."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    y = _by_kernel(x, weight, ends) if _has_kernel(x, weight) else _one_by_one(x, weight, ends)
    return y if bias is None else y + of_rows(bias, ends, len(x)).to(y.dtype)


def of_rows(values: Float[Tensor, "E n"], ends: Int[Tensor, " E"], rows: int) -> Float[Tensor, "M n"]:
    """For each of so many rows what its expert has; zeros from ends[-1] on."""
    owner = torch.searchsorted(ends, torch.arange(rows, device=ends.device), right=True)
    return F.pad(values, (0, 0, 0, 1))[owner]


def spread(x: Float[Tensor, "N D"], tokens: Int[Tensor, " M"], places: Tensor | None) -> Float[Tensor, "M D"]:
    """The rows `tokens` of x; `places` as in routing.Routes."""
    return _Spread.apply(x, tokens, places)


def gather(
    y: Float[Tensor, "M D"], tokens: Int[Tensor, " M"], places: Tensor | None, rows: int
) -> Float[Tensor, "N D"]:
    """What `spread` did, transposed: the sum of a token's rows."""
    return _Gather.apply(y, tokens, places, rows)


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether this device multiplies groups at once; elsewhere they are multiplied one by one."""
    wide = x.shape[-1] % 8 == weight.shape[1] % 8 == 0  # rows begin at multiples of 16 bytes
    if not (x.is_cuda and x.dtype == weight.dtype == torch.bfloat16 and wide and hasattr(F, "grouped_mm")):
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _by_kernel(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _Kernel.apply(x, weight, ends)


class _Kernel(torch.autograd.Function):
    """What F.grouped_mm leaves as memory was is zeros here: rows that nobody reads, in the product and in the gradient
    of x, and the gradients of matrices without rows, which Blackwell's kernel does not write. It takes rows that begin
    at multiples of 16 bytes, and matrices without rows only in this arrangement of the weights' gradient."""

    @staticmethod
    def forward(ctx, x, weight, ends):
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight, ends)
        return _read(F.grouped_mm(x, weight.mT, offs=ends), ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, ends = ctx.saved_tensors
        gradient, d_x, d_weight = gradient.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            d_x = _read(F.grouped_mm(gradient, weight, offs=ends), ends)
        if ctx.needs_input_grad[1]:
            without = ends == F.pad(ends[:-1], (1, 0))
            d_weight = F.grouped_mm(gradient.mT, x, offs=ends).masked_fill_(without[:, None, None], 0)
        return d_x, d_weight, None


def _read(y: Tensor, ends: Tensor) -> Tensor:
    return y.masked_fill_((torch.arange(len(y), device=y.device) >= ends[-1])[:, None], 0)


def _one_by_one(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if x.is_meta:  # shapes, and as many operations
        return x @ weight[0].T
    return (_traced if torch.compiler.is_compiling() else _Grouped.apply)(x, weight, ends)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, ends):
        ctx.save_for_backward(x, weight, ends)
        return _product(x, weight, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return *_slopes(gradient, *ctx.saved_tensors, *ctx.needs_input_grad[:2]), None


def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_empty(len(x), weight.shape[1])
    last = 0
    for matrix, rows in zip(weight, _slices(ends)):
        if rows.stop > last:  # when a single token is written, most have none
            torch.mm(x[rows], matrix.T, out=y[rows])
        last = rows.stop
    y[last:] = 0
    return y


def _slopes(
    gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor, by_x: bool, by_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    gradient = gradient.contiguous()
    d_x, d_weight = torch.empty_like(x) if by_x else None, torch.empty_like(weight) if by_weight else None
    last = 0
    for e, rows in enumerate(_slices(ends)):
        if by_x:
            torch.mm(gradient[rows], weight[e], out=d_x[rows])
        if by_weight:
            torch.mm(gradient[rows].T, x[rows], out=d_weight[e])
        last = rows.stop
    if by_x:
        d_x[last:] = 0
    return d_x, d_weight


def _slices(ends: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise([0, *ends.tolist()])]


# The same as operations that torch.compile leaves alone: how many rows each matrix has is known in Python only, and the
# compiler's own idea of F.grouped_mm takes bf16 alone.


@torch.library.custom_op("onefold::grouped", mutates_args=())
def _traced(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _product(x, weight, ends)


@_traced.register_fake
def _(x, weight, ends):
    return x.new_empty(len(x), weight.shape[1])


@torch.library.custom_op("onefold::grouped_slopes", mutates_args=())
def _traced_slopes(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return _slopes(gradient, x, weight, ends, True, True)


@_traced_slopes.register_fake
def _(gradient, x, weight, ends):
    return torch.empty_like(x), torch.empty_like(weight)


_traced.register_autograd(
    lambda ctx, gradient: (*_traced_slopes(gradient, *ctx.saved_tensors), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class _Spread(torch.autograd.Function):
    """Its gradient is a sum of gathered rows, in a fixed order, where that of indexing adds up in any."""

    @staticmethod
    def forward(ctx, x, tokens, places):
        ctx.save_for_backward(tokens, places)
        ctx.rows = len(x)
        return x.index_select(0, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return _summed(gradient, *ctx.saved_tensors, ctx.rows), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, tokens, places, rows):
        ctx.save_for_backward(tokens)
        return _summed(y, tokens, places, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient.index_select(0, *ctx.saved_tensors), None, None, None


def _summed(y: Tensor, tokens: Tensor, places: Tensor | None, rows: int) -> Tensor:
    if places is None:
        return y.new_zeros(rows, y.shape[1]).index_add_(0, tokens, y)
    first, *others = places
    total = y.index_select(0, first)
    for place in others:
        total += y.index_select(0, place)
    return total
