"""What a model is trained on in one step: a frozen bundle of tensors."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors whose first dimension is the row. Subclasses only add fields."""

    def _map(self, change) -> Self:
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(t) for name, t in present.items() if isinstance(t, Tensor)})

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`; pinned memory is copied without waiting."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    @property
    def rows(self) -> int:
        return next(len(t) for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor))

    def take(self, rows: slice) -> Self:
        """The batch of these rows only (views, no copies)."""
        return self._map(lambda t: t[rows])

    def split(self, size: int) -> list[Self]:
        """Micro-batches of at most `size` rows, in order."""
        return [self.take(slice(start, start + size)) for start in range(0, self.rows, size)]


@dataclass(frozen=True, kw_only=True)
class TokenBatch(Batch):
    """Tokens and what should follow each of them.

    `segments` None means that every row is one piece of one document at positions 0…T-1, so plain causal attention
    serves. Otherwise a row holds several documents: attention stays inside a segment and positions restart with it.
    """

    tokens: Tensor  # Long[B, T]
    targets: Tensor  # Long[B, T]
    weights: Tensor  # Float[B, T]: 0 where nothing is to be learned (padding, prompts)
    positions: Tensor | None = None  # Long[B, T]
    segments: Tensor | None = None  # Long[B, T]

    def counts(self) -> dict[str, float]:
        """True sizes: `tokens` read by the model and the `weight` of the targets to learn."""
        return {"tokens": self.tokens.numel(), "weight": float(self.weights.sum())}
