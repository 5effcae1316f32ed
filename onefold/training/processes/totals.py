"""Sums and counts of a loss, added up over micro-batches and processes before anything is divided."""

from typing import Any

import torch
from torch import Tensor

from onefold.core import dist
from onefold.core.batch import Batch
from onefold.core.errors import UserError
from onefold.objectives.base import Loss


class Totals:
    """The global sum and count of each term and metric of a loss."""

    def __init__(self, device: torch.device):
        self.pairs: dict[str, Tensor] = {}  # (sum, count), each a number or a row; this process's until collected
        self.weights: dict[str, float] = {}  # of the terms; metrics have none
        self.where = {"device": device, "dtype": torch.float32 if device.type == "mps" else torch.float64}

    def add(self, loss: Loss, share: float = 1.0) -> None:
        """Add a micro-batch's. `share` 0 makes it count for nothing (a process that had no row of its own)."""
        for name, term in {**loss.terms, **loss.metrics}.items():
            total = term.sum.detach()
            pair = torch.stack((total, term.count.expand_as(total))).to(**self.where) * share
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair
        self.weights |= {name: term.weight for name, term in loss.terms.items()}

    def collect(self, *further: Tensor | float) -> list[float]:
        """Add everything up over all processes, and `further` numbers with it, which are returned: one exchange."""
        numbers = torch.stack([torch.as_tensor(x, **self.where) for x in further]) if further else torch.empty(0)
        pairs = [pair for _, pair in sorted(self.pairs.items())]
        values = dist.all_sum(torch.cat([*map(torch.flatten, pairs), numbers.to(**self.where)])).cpu().double()
        *parts, rest = values.split([*map(torch.numel, pairs), len(further)])
        self.pairs = {name: part.view_as(self.pairs[name]) for name, part in zip(sorted(self.pairs), parts)}
        return rest.tolist()

    def average(self, name: str) -> Any:
        """A number, or a list of them."""
        total, count = self.pairs[name]
        return (total / torch.where(count == 0, 1, count)).tolist()

    def loss(self) -> float:
        """The weighted sum of the terms' averages: what is minimised."""
        return sum(weight * self.average(name) for name, weight in self.weights.items())

    def figures(self) -> dict[str, Any]:
        """The loss, its terms where it has several, and the metrics."""
        parts = {name: self.average(name) for name in self.pairs if name not in self.weights or len(self.weights) > 1}
        return {"loss": self.loss(), **parts}

    def common_count(self) -> float:
        """The one count that all terms share, by which a gradient of their sums can be divided afterwards."""
        counts = {name: self.pairs[name][1].item() for name in self.weights}
        if len(set(counts.values())) > 1:
            raise UserError(
                f"the objective's terms have different counts ({counts}), so it must know them before the model runs: "
                "give it a method counts(batch) -> {term: count}"
            )
        return next(iter(counts.values())) or 1.0


def global_counts(objective: Any, batch: Batch, device: torch.device) -> dict[str, float]:
    """The global count of each term, where the objective has a method `counts` that says them before the model runs.

    An objective whose terms are averaged over different things (masked tokens and sentence pairs, say) needs it.
    """
    if not hasattr(objective, "counts"):
        return {}
    counts = objective.counts(batch)
    total = torch.stack([torch.as_tensor(count, dtype=torch.float32, device=device) for count in counts.values()])
    return {name: count or 1.0 for name, count in zip(counts, dist.all_sum(total).tolist())}
