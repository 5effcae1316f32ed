"""Matrix times few vectors: what decoding spends its time on, computed by what is fastest for it on this machine.

A step of decoding reads every weight to use it once a text, so it is as fast as memory. In fp32 on x86, torch's own
linear layer reaches a third of that (one row) and half the arithmetic (sixteen); two other ways to the same product do
better, see benchmarks/decode.py:

- one or two rows: the weight as a batch of blocks of its rows, multiplied by torch.bmm, which streams them in order;
- more rows: oneDNN with the weight laid out once for it. That copy is made at the first need, and only where it takes
  no more than a quarter of this machine's memory.

Around them every small operation costs more than its arithmetic, since the weights have just swept the caches.
"""

import copy
import os
import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.nn.linear import Linear
from onefold.nn.norm import RMSNorm

BLOCK = 64  # rows of a weight multiplied at a time
ROWS_HINT = 16  # what oneDNN lays weights out for; measured to serve 3 rows as well as 512
MEMORY_SHARE = 0.25


def for_decoding(model: nn.Module) -> nn.Module:
    """The same model, every parameter shared, for inference with few rows; itself unless in fp32 on an x86 processor.

    It follows changes of the parameters (training, merged adapters), not of the layers.
    """
    usual = platform.machine().lower() not in ("x86_64", "amd64") or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if usual or any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        return model
    return _twin(model, sum(p.nbytes for p in model.parameters()) <= to_spare())


def _twin(module: nn.Module, packs: bool) -> nn.Module:
    if type(module) is Linear:
        return FewRowsLinear(module, packs)
    if type(module) is RMSNorm:
        return FewRowsNorm(module)
    if type(module) is nn.Dropout and not module.training:
        return nn.Identity()
    twin = copy.copy(module)
    twin._modules = {name: child and _twin(child, packs) for name, child in module._modules.items()}
    return twin


class FewRowsLinear(nn.Module):
    """A linear layer in fp32 on a CPU, without gradients (with them it is the usual one)."""

    def __init__(self, linear: Linear, packs: bool):
        super().__init__()
        self.weight, self.bias, self.packs = linear.weight, linear.bias, packs
        self.outward, self.inward = linear.weight.shape
        self._pack: tuple[tuple[int, int], Tensor] | None = None  # which weight, and the weight as oneDNN likes it

    def forward(self, x: Float[Tensor, "*rows inward"]) -> Float[Tensor, "*rows outward"]:
        rows = x.numel() // self.inward
        if rows > 2 and self.packs and not torch.is_grad_enabled():
            return torch.ops.mkldnn._linear_pointwise(x, self._packed(), self.bias, "none", [], "")
        if rows > 2 or self.outward < BLOCK or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        y = self._by_blocks(x.contiguous(), rows).view(*x.shape[:-1], self.outward)
        return y if self.bias is None else y + self.bias

    def dense(self) -> Float[Tensor, "outward inward"]:
        return self.weight

    def _by_blocks(self, x: Tensor, rows: int) -> Float[Tensor, "rows outward"]:
        count, rest = divmod(self.outward, BLOCK)
        weight = self.weight[:-rest] if rest else self.weight
        # The strides say "x transposed". With others that mean the same for one row, MKL takes a path 5 times slower.
        vectors = x.as_strided((count, self.inward, rows), (0, 1, self.inward))
        y = torch.bmm(weight.view(count, BLOCK, self.inward), vectors)
        if rows > 1 or rest:
            y = y.view(-1, rows).T.contiguous()
        if rest:
            y = torch.cat((y, F.linear(x.view(rows, self.inward), self.weight[-rest:])), dim=1)
        return y

    def _packed(self) -> Tensor:
        version = (self.weight._version, self.weight.data_ptr())
        if self._pack is None or self._pack[0] != version:
            self._pack = (version, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS_HINT))
        return self._pack[1]


class FewRowsNorm(nn.Module):
    """RMSNorm in four operations instead of eight where every row has one token: x · x as a product of matrices."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps
        self._eps = torch.tensor(norm.eps)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if x.ndim != 3 or x.shape[1] != 1 or torch.is_grad_enabled():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scale = torch.baddbmm(self._eps, x, x.mT, alpha=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight)


def to_spare() -> float:
    """Bytes that a second copy of weights may take on this machine."""
    return MEMORY_SHARE * _memory()


def _memory() -> int:
    """Bytes of this machine's memory; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
