"""A loss as the trainer sees it: sums beside their counts, so that averages are exact over any split of a batch."""

from dataclasses import dataclass, field

from torch import Tensor

from onefold.core.config import Config


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


def body_of(start: Config, classes: int = 0) -> Config:
    """What is kept of a model to begin with: of one that was made for a single objective, what other ones can use.

    An objective that goes on from something else has a `going_on` of its own, called like this. classes: in the data.
    """
    return getattr(start, "body", start)


def with_classes(start: Config, classes: int) -> Config:
    """The body with a classifier of so many classes, unless it has one."""
    body = body_of(start)
    return body.but({"classes": classes}) if getattr(body, "classes", None) == 0 else body
