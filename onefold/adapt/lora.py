"""LoRA and its kin: a matrix stays as it is, and a product of two thin ones beside it learns what to add.

    LoRA    y = W x + s · B A x      s = α / r     (arXiv 2106.09685, section 4.1)
    rsLoRA                           s = α / √r    (arXiv 2312.03732, theorem 3.2)
    DoRA    y = m / ‖W + s B A‖ · (W + s B A) x    the norm is that of each row, m begins as it (arXiv 2402.09353)

A begins as a linear layer does and B at zero, so that an adapted model begins as the one it adapts. Experts have an
A and a B each; their router stays.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from math import sqrt
from types import EllipsisType
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.adapt.surgery import Matrix, Switch, find, fits, freeze, replace, shared, switch_of
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.nn.linear import linear
from onefold.nn.quantized import QuantizedLinear
from onefold.nn.sparse.grouped import grouped_linear, of_rows

NAME = "adapter"  # of the only one
WHOLE = "whole"  # the part that is all of a matrix
TINY = torch.finfo(torch.float32).tiny  # instead of the norm of a row of zeros


class LoRAConfig(Config):
    """Adapters beside all matrices that `targets` fit (see surgery.py); all else stays, but for a classifier."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    rslora: bool = False
    dora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of what an adapter reads
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("blocks.*",)
    ranks: dict[str, Annotated[int, Field(ge=1)]] = {}  # pattern → another rank, the first that fits
    alphas: dict[str, Annotated[float, Field(gt=0)]] = {}  # the same for alpha
    also: tuple[str, ...] = ()  # patterns of parameters that train in full

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / (sqrt(rank) if self.rslora else rank)

    def apply(self, model: nn.Module, name: str = NAME) -> None:
        """Adapt `model` in place, by an adapter of this name; those that it has stay, and rest.

        Errors: UserError when a pattern fits nothing, or a matrix that others share.
        """
        twofold, found = shared(model), find(model, self.targets)
        for matrix in found:
            if id(matrix.module._parameters.get("weight")) in twofold:
                raise UserError(
                    f"adapt: {matrix.name} is the token embedding, too; it cannot have an adapter of its own"
                )
        switch = switch_of(model)
        switch.add(name)
        for matrix in found:
            if not isinstance(matrix.module, LoRALinear):
                replace(model, matrix.path, LoRALinear(matrix.module, switch))
            layer = model.get_submodule(matrix.path)
            if name in layer.adapters:
                raise UserError(f"adapt: {matrix.name} has an adapter {name!r} already")
            layer.adapters[name] = nn.ModuleDict(self._adapters(matrix, layer.base)).train(model.training)
        freeze(model, name)
        for pattern in self.also:
            named = [parameter for own, parameter in model.named_parameters() if fits(own, pattern)]
            if not named:
                raise UserError(f"adapt.also: {pattern!r} fits no parameter of the model")
            for parameter in named:
                parameter.requires_grad_(True)

    def _adapters(self, matrix: Matrix, base: nn.Module) -> "dict[str, LoRA]":
        whole = matrix.parts or {WHOLE: (0, base.out_features)}
        made = {}
        for (part, rows), own in zip(whole.items(), matrix.names()):
            rank = next((n for pattern, n in self.ranks.items() if fits(own, pattern)), self.rank)
            alpha = next((n for pattern, n in self.alphas.items() if fits(own, pattern)), self.alpha)
            made[part] = LoRA(base, rows, rank, self.scale(rank, alpha), self.dropout, self.dora)
        return made


class LoRA(nn.Module):
    """An adapter beside the rows from `rows[0]` to `rows[1]` of a linear layer, or of each expert's."""

    def __init__(
        self, base: nn.Module, rows: tuple[int, int], rank: int, scale: float, dropout: float = 0.0, dora: bool = False
    ):
        super().__init__()
        device = next(chain(base.parameters(), base.buffers())).device
        experts = (base.experts,) if hasattr(base, "experts") else ()
        self.rows, self.rank, self.scale = slice(*rows), rank, scale
        self.dropout = nn.Dropout(dropout)
        self.a = nn.Parameter(torch.empty(*experts, rank, base.in_features, device=device))
        self.b = nn.Parameter(torch.zeros(*experts, rows[1] - rows[0], rank, device=device))
        nn.init.kaiming_uniform_(self.a.detach().flatten(0, -2), a=sqrt(5))
        self.magnitude = None
        if dora:
            self.magnitude = nn.Parameter(self.b.detach()[..., 0].clone())
            self.packed = {"magnitude": ()}  # a vector, or one for each expert
            for e, weight in _plain(base):
                self.magnitude.data[e] = weight.detach()[..., self.rows, :].to(self.a.dtype).norm(dim=-1)

    def forward(
        self,
        x: Float[Tensor, "*rows inward"],
        y: Float[Tensor, "*rows part"],
        base: nn.Module,
        stretch: Float[Tensor, "*experts part"] | None,
        *ends: Int[Tensor, " E"],
    ) -> Float[Tensor, "*rows part"]:
        """What becomes of `y`, these rows of base(x), or of base(x, ends) where each expert has a matrix.

        stretch: what DoRA multiplies each row of the matrix with.
        """
        read = self.dropout(x).to(self.a.dtype)
        if ends:
            added = grouped_linear(grouped_linear(read, self.a, None, *ends) * self.scale, self.b, None, *ends)
        else:
            added = F.linear(F.linear(read, self.a) * self.scale, self.b)
        if stretch is None:
            return y + added.to(y.dtype)
        bias = None if base.bias is None else base.bias[..., self.rows]
        if ends:
            stretch, bias = (v if v is None else of_rows(v, *ends, len(x)) for v in (stretch, bias))
        plain = y if bias is None else y - bias
        stretched = stretch * (plain + added)
        return (stretched if bias is None else stretched + bias).to(y.dtype)

    def norm(
        self, weight: Float[Tensor, "*experts outward inward"], expert: int | EllipsisType
    ) -> Float[Tensor, "*experts part"]:
        """‖W + s B A‖ of each row, of all experts or of the one whose matrix `weight` is.

        ‖w + d‖² = ‖w‖² + 2 w·d + ‖d‖² with d = s B A, row by row, takes products as thin as the adapter.
        """
        weight, a, b = weight[..., self.rows, :].to(self.a.dtype), self.a[expert], self.b[expert] * self.scale
        crossed = (weight @ a.mT * b).sum(-1)
        own = (b @ (a @ a.mT) * b).sum(-1)
        return (weight.square().sum(-1) + 2 * crossed + own).clamp(min=0).sqrt()

    def dense(
        self, weight: Float[Tensor, "*experts part inward"], stretch: Float[Tensor, "*experts part"] | None
    ) -> Float[Tensor, "*experts part inward"]:
        """These rows of the base's matrix with the adapter merged into them."""
        merged = weight + (self.b @ self.a * self.scale).to(weight.dtype)
        return merged if stretch is None else (stretch[..., None] * merged).to(weight.dtype)


class LoRALinear(nn.Module):
    """A linear layer `base`, and adapters by name, of which one is active or none.

    An adapter is a LoRA for each part of the base that it adapts. The base may be of fewer bits, or have a matrix for
    each expert: all that is asked of it is forward(x), or forward(x, ends), dense() and bias.
    """

    def __init__(self, base: nn.Module, switch: Switch):
        super().__init__()
        self.base, self.switch = base, switch
        self.in_features, self.out_features = base.in_features, base.out_features
        self.adapters = nn.ModuleDict()
        self._kept: dict[str, tuple[list[tuple[int, int]], list[Tensor]]] = {}  # of each adapter's parts

    def forward(self, x: Float[Tensor, "*rows inward"], *ends: Int[Tensor, " E"]) -> Float[Tensor, "*rows outward"]:
        if (loras := self.loras) is None:
            return self.base(x, *ends)
        if not ends and self._cheaper_as_one(x, loras):
            tensors = [tensor for lora in loras for tensor in (lora.a, lora.b, lora.magnitude)]
            plan = [(lora.rows, lora.scale) for lora in loras]
            own = self.base.weight if isinstance(self.base, nn.Linear) else None
            return _AsOne.apply(x, own, self.base.bias, self.base, plan, *tensors)
        found, stretch = self.base(x, *ends), self._stretches(loras)
        return self._each(loras, found, -1, lambda lora, piece: lora(x, piece, self.base, stretch[lora], *ends))

    def _cheaper_as_one(self, x: Tensor, loras: "list[LoRA]") -> bool:
        """Whether to add the adapters to the matrix, which costs what the matrix is large, rather than to what comes
        of x, which costs as much for every row: full precision only, where small changes of a weight are not lost."""
        base, kind = self.base, x.device.type
        if torch.compiler.is_compiling() or 2 * x.numel() < self.in_features**2:
            return False
        if isinstance(base, nn.Linear):
            if base.weight.requires_grad or base.weight.dtype != x.dtype:
                return False
        elif not isinstance(base, QuantizedLinear):  # whose matrix is made whenever it is asked for
            return False
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return False
        plain = x.dtype in (torch.float32, torch.float64) and all(lora.a.dtype == x.dtype for lora in loras)
        return plain and not any(lora.training and lora.dropout.p for lora in loras)

    @property
    def loras(self) -> "list[LoRA] | None":
        """The active adapter's, in the order of their rows; None: it has none here, or is a part of the weights."""
        name = self.switch.beside
        return None if name is None or name not in self.adapters else list(self.adapters[name].values())

    def dense(self) -> Float[Tensor, "*experts outward inward"]:
        """The matrix that x is multiplied with, the active adapter merged into it."""
        weight, loras = self.base.dense(), self.loras
        if loras is None:
            return weight
        stretch = self._stretches(loras)
        return self._each(loras, weight, -2, lambda lora, piece: lora.dense(piece, stretch[lora]))

    @property
    def weight(self) -> Float[Tensor, "*experts outward inward"]:
        """For those who multiply themselves (losses by chunks of the vocabulary)."""
        return self.dense()

    @property
    def bias(self) -> Float[Tensor, "*experts outward"] | None:
        return self.base.bias

    def forget(self) -> None:
        """Let go of what was computed once: weights come anew, which neither version nor address may tell."""
        self._kept.clear()

    def _stretches(self, loras: list[LoRA]) -> dict[LoRA, Tensor | None]:
        """What DoRA multiplies each row with, m / ‖W + s B A‖; while tokens are written one by one, computed once."""
        if loras[0].magnitude is None:
            return dict.fromkeys(loras)
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return dict(zip(loras, _stretches(self.base, loras), strict=True))
        tensors = [*chain.from_iterable(lora.parameters() for lora in loras), *self.base.parameters(recurse=False)]
        state = [(p._version, p.data_ptr()) for p in tensors]
        if self._kept.get(self.switch.beside, (None,))[0] != state:
            self._kept[self.switch.beside] = state, _stretches(self.base, loras)
        return dict(zip(loras, self._kept[self.switch.beside][1], strict=True))

    def _each(self, loras: list[LoRA], whole: Tensor, dim: int, change: Callable[[LoRA, Tensor], Tensor]) -> Tensor:
        """`whole` with the rows of each LoRA changed by it."""
        if len(loras) == 1 and loras[0].rows == slice(0, self.out_features):
            return change(loras[0], whole)
        changes, sizes, at = [], [], 0  # None: rows that stay
        for lora in [*loras, None]:
            start, stop = (lora.rows.start, lora.rows.stop) if lora else (self.out_features,) * 2
            changes += [None, lora]
            sizes += [start - at, stop - start]
            at = stop
        pieces = whole.split(sizes, dim)  # whose gradient is one matrix, where that of slices is a sum of as many
        return torch.cat([change(lora, p) if lora else p for lora, p in zip(changes, pieces, strict=True)], dim)


def _stretches(base: nn.Module, loras: list[LoRA]) -> list[Tensor]:
    """No gradient flows through the norm (section 4.3)."""
    with torch.no_grad():
        norms = [torch.empty_like(lora.magnitude) for lora in loras]
        for e, weight in _plain(base):
            for lora, norm in zip(loras, norms, strict=True):
                norm[e] = lora.norm(weight, e)
    return [lora.magnitude / norm.clamp(min=TINY) for lora, norm in zip(loras, norms, strict=True)]


def _plain(base: nn.Module) -> Iterator[tuple[int | EllipsisType, Float[Tensor, "*experts outward inward"]]]:
    """The matrix, or all experts'; where those have fewer bits one after the other, each with its number."""
    layers = enumerate(base.each) if hasattr(base, "each") else ((..., base),)
    return ((e, layer.dense()) for e, layer in layers)


class _AsOne(torch.autograd.Function):
    """x·(W + s B A)ᵀ + b, or DoRA's, for a W that stays: the sum is made for each pass and kept in none.

    So the thin products are those of the gradients alone: of B (g and x Aᵀ), and of A (g B and x), where those of all
    parts are one. Arguments: x, W where the layer has it as plain numbers, b, the layer, rows and scale of each
    adapter, and of each A, B, and magnitude or None.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, base, plan, *parts):
        ctx.base, ctx.plan, ctx.has_bias = base, plan, bias is not None
        whole = _added(base, weight, x.dtype, plan, parts)
        if parts[2] is None:
            ctx.save_for_backward(x, weight, *parts)
            return linear(x, whole, bias)
        norm = whole.norm(dim=1).clamp_(min=TINY)
        stretch = torch.ones_like(norm)
        for (rows, _), magnitude in zip(plan, parts[2::3], strict=True):
            stretch[rows] = magnitude / norm[rows]
        y = linear(x, whole)
        ctx.save_for_backward(x, weight, *parts, y, norm, stretch)
        return y * stretch if bias is None else torch.addcmul(bias, y, stretch)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, *parts = ctx.saved_tensors
        dora = len(parts) > 3 * len(ctx.plan)
        *parts, y, norm, stretch = parts if dora else (*parts, None, None, None)
        wants_x, _, wants_bias, _, _, *wants_parts = ctx.needs_input_grad
        out, read = gradient.flatten(0, -2), x.flatten(0, -2)
        d_x = None
        if wants_x:
            whole = _added(ctx.base, weight, x.dtype, ctx.plan, parts)
            d_x = linear(gradient, (whole.mul_(stretch[:, None]) if dora else whole).T)
        d_parts = [None] * len(parts)
        if any(wants_parts):
            inner, thin = (read @ torch.cat(parts[::3]).T).split([len(a) for a in parts[::3]], 1), []
            d_norms = (gradient * y).flatten(0, -2).sum(0) / norm if dora else None
            for i, (rows, scale) in enumerate(ctx.plan):
                own, b, factor = out[:, rows], parts[3 * i + 1], stretch[rows, None] * scale if dora else scale
                thin.append(own @ (b * factor))
                d_parts[3 * i + 1] = (own.T @ inner[i]).mul_(factor)
                d_parts[3 * i + 2] = d_norms[rows] if dora else None
            d_parts[::3] = (torch.cat(thin, 1).T @ read).split([len(a) for a in parts[::3]])
        return d_x, None, out.sum(0) if ctx.has_bias and wants_bias else None, None, None, *d_parts


def _added(
    base: nn.Module, weight: Tensor | None, dtype: torch.dtype, plan: Sequence[tuple[slice, float]], parts: Sequence
) -> Float[Tensor, "outward inward"]:
    """W + s B A, in memory of its own."""
    whole = base.dense(dtype) if weight is None else weight.clone()
    for (rows, scale), a, b in zip(plan, parts[::3], parts[1::3], strict=True):
        whole[rows].addmm_(b, a, alpha=scale)
    return whole
