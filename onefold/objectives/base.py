"""A loss as the trainer sees it: sums beside their counts, so that averages are exact over any split of a batch."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """`sum` over what this micro-batch holds, and the `count` it will be divided by once all are added up."""

    sum: Tensor  # Float[], carries the gradient
    count: Tensor  # Float[], does not
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The terms to minimise, and metrics to show, as (sum, count) pairs too."""

    terms: dict[str, Term]
    metrics: dict[str, Term] = field(default_factory=dict)
