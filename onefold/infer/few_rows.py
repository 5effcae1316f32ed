"""Matrix times few vectors: what decoding spends its time on, computed by what is fastest for it on this machine.

A step of decoding reads every weight to use it once a text, so it is as fast as memory. In fp32 on x86, torch's own
linear layer reaches a third of that (one row) and half the arithmetic (sixteen); two other ways to the same product do
better, see benchmarks/decode.py:

- one or two rows: the weight as a batch of blocks of its rows, multiplied by torch.bmm, which streams them in order;
- more rows: oneDNN with the weight laid out once for it. That copy is made at the first need, and only where it takes
  no more than a quarter of this machine's memory.
"""

import copy
import os
import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64  # rows of a weight multiplied at a time
ROWS_HINT = 16  # what oneDNN lays weights out for; measured to serve 3 rows as well as 512
MEMORY_SHARE = 0.25


def for_decoding(model: nn.Module) -> nn.Module:
    """The same model, every parameter shared, for inference with few rows. Layers replaced later are not seen."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return model
    packs = sum(p.nbytes for p in model.parameters()) <= MEMORY_SHARE * _memory()
    return _shared(model, packs)


def _shared(module: nn.Module, packs: bool) -> nn.Module:
    if type(module) is nn.Linear:
        return FewRowsLinear(module, packs)
    twin = copy.copy(module)
    twin._modules = {name: child and _shared(child, packs) for name, child in module._modules.items()}
    return twin


class FewRowsLinear(nn.Module):
    """A linear layer of a CPU in fp32; anything else goes the usual way. No gradients."""

    def __init__(self, linear: nn.Linear, packs: bool):
        super().__init__()
        self.weight, self.bias, self.packs = linear.weight, linear.bias, packs
        self._pack: tuple[tuple[int, int], Tensor] | None = None  # which weight, and the weight as oneDNN likes it

    def forward(self, x: Float[Tensor, "*rows inward"]) -> Float[Tensor, "*rows outward"]:
        outward, inward = self.weight.shape
        rows = x.numel() // inward
        if torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu":
            return F.linear(x, self.weight, self.bias)
        if rows <= 2 and outward >= BLOCK:
            y = self._by_blocks(x.reshape(rows, inward))
            return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], outward)
        if rows > 2 and self.packs:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed(), self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def _by_blocks(self, x: Float[Tensor, "rows inward"]) -> Float[Tensor, "rows outward"]:
        whole = len(self.weight) - len(self.weight) % BLOCK
        blocks = self.weight[:whole].view(-1, BLOCK, x.shape[1])
        y = torch.bmm(blocks, x.T.expand(len(blocks), -1, -1)).view(whole, len(x)).T
        return y if whole == len(self.weight) else torch.cat((y, F.linear(x, self.weight[whole:])), dim=1)

    def _packed(self) -> Tensor:
        version = (self.weight._version, self.weight.data_ptr())
        if self._pack is None or self._pack[0] != version:
            self._pack = (version, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS_HINT))
        return self._pack[1]


def _memory() -> int:
    """Bytes of this machine's memory; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
