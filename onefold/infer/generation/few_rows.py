"""Matrix times few vectors: what decoding spends its time on, computed by what is fastest for it on this machine.

A step of decoding reads every weight to use it once a text, so it is as fast as memory. In fp32 on x86, torch's own
linear layer reaches a third of that (one row) and half the arithmetic (sixteen); two other ways to the same product do
better, see benchmarks/decode.py:

- one or two rows: the weight as a batch of blocks of its rows, multiplied by torch.bmm, which streams them in order;
- more rows: oneDNN with the weight laid out once for it. That copy is made at the first need, and only where it takes
  no more than a quarter of this machine's memory.

Around them every small operation costs more than its arithmetic, since the weights have just swept the caches. So a
few tokens' experts are asked one after the other, with nothing sorted.
"""

import copy
import os
import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.nn.feedforward import gated
from onefold.nn.linear import Linear
from onefold.nn.norm import RMSNorm
from onefold.nn.sparse.experts import Experts, GroupedLinear
from onefold.nn.sparse.routing import TokenRouter

BLOCK = 64  # rows of a weight multiplied at a time
ROWS_HINT = 16  # what oneDNN lays weights out for; measured to serve 3 rows as well as 512
FEW_TOKENS = 64  # of which a norm is computed by products
MEMORY_SHARE = 0.25
FEW = 16  # tokens whose experts are asked one after the other, without sorting: beyond, that costs nothing beside them


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
    return FewRowsExperts(twin) if FewRowsExperts.suits(module) else twin


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
        y = by_blocks(x.contiguous(), self.weight, rows).view(*x.shape[:-1], self.outward)
        return y if self.bias is None else y + self.bias

    def dense(self) -> Float[Tensor, "outward inward"]:
        return self.weight

    def _packed(self) -> Tensor:
        version = (self.weight._version, self.weight.data_ptr())
        if self._pack is None or self._pack[0] != version:
            self._pack = (version, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS_HINT))
        return self._pack[1]


def by_blocks(
    x: Float[Tensor, "*rows inward"], weight: Float[Tensor, "outward inward"], rows: int
) -> Float[Tensor, "rows outward"]:
    """x·Wᵀ for one or two rows, which lie without gaps."""
    outward, inward = weight.shape
    count, rest = divmod(outward, BLOCK)
    whole = weight[:-rest] if rest else weight
    # The strides say "x transposed". With others that mean the same for one row, MKL takes a path 5 times slower.
    vectors = x.as_strided((count, inward, rows), (0, 1, inward))
    y = torch.bmm(whole.view(count, BLOCK, inward), vectors)
    if rows > 1 or rest:
        y = y.view(-1, rows).T.contiguous()
    if rest:
        y = torch.cat((y, F.linear(x.view(rows, inward), weight[-rest:])), dim=1)
    return y.view(rows, outward)


class FewRowsExperts(nn.Module):
    """A layer of experts in fp32 on a CPU; it is the usual one but where a few tokens are read without gradients."""

    def __init__(self, layer: Experts):
        super().__init__()
        self.layer = layer

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        plain = type(layer) is Experts and type(layer.router) is TokenRouter and layer.exchange is None
        return plain and all(type(child) is GroupedLinear for child in layer.experts.children())

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        layer, rows = self.layer, x.reshape(-1, x.shape[-1])
        if len(rows) > FEW or torch.is_grad_enabled() or layer.training or layer.told is not None:
            return layer(x)
        probabilities = F.linear(rows, layer.router.weight).softmax(-1)
        weights, experts, _ = layer.router.config.choose(probabilities, False)
        readers: dict[int, tuple[list[int], list[float]]] = {}  # of each expert that is asked: tokens, and its weights
        for token, pairs in enumerate(zip(experts.tolist(), weights.tolist(), strict=True)):
            for expert, weight in zip(*pairs, strict=True):
                tokens, shares = readers.setdefault(expert, ([], []))
                tokens.append(token)
                shares.append(weight)
        y = torch.zeros_like(rows)
        for expert, (tokens, shares) in readers.items():
            if len(tokens) == 1:
                token = slice(tokens[0], tokens[0] + 1)
                y[token].add_(self._expert(rows[token], expert), alpha=shares[0])
            else:
                index = torch.tensor(tokens)
                y.index_add_(0, index, self._expert(rows[index], expert) * torch.tensor(shares)[:, None])
        return layer.joined(x, y.view_as(x))

    def _expert(self, rows: Float[Tensor, "n D"], expert: int) -> Float[Tensor, "n D"]:
        mlp = self.layer.experts
        if mlp.gated:
            return _product(mlp.out, gated(_product(mlp.gate_up, rows, expert), mlp.activation), expert)
        return _product(mlp.out, mlp.activation(_product(mlp.up, rows, expert)), expert)


def _product(matrices: GroupedLinear, rows: Float[Tensor, "n inward"], expert: int) -> Float[Tensor, "n outward"]:
    weight = matrices.weight[expert]
    blocks = len(rows) <= 2 and len(weight) >= BLOCK
    y = by_blocks(rows.contiguous(), weight, len(rows)) if blocks else F.linear(rows, weight)
    return y if matrices.bias is None else y + matrices.bias[expert]


class FewRowsNorm(nn.Module):
    """RMSNorm of few tokens in four operations instead of eight: x · x as a product of matrices."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps
        self._eps = torch.tensor(norm.eps)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if x.ndim != 3 or torch.is_grad_enabled() or (x.shape[1] > 1 and len(x) * x.shape[1] > FEW_TOKENS):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        rows = x.reshape(-1, 1, x.shape[-1])
        scale = torch.baddbmm(self._eps, rows, rows.mT, alpha=1 / x.shape[-1]).rsqrt_()
        return (rows * scale).mul_(self.weight).view_as(x)


def to_spare() -> float:
    """Bytes that a second copy of weights may take on this machine."""
    return MEMORY_SHARE * _memory()


def _memory() -> int:
    """Bytes of this machine's memory; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
