"""A loss as the trainer sees it: sums beside their counts, so that averages are exact over any split of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from onefold.core.config import Config
from onefold.nn.own_losses import Told


@dataclass(frozen=True)
class Term:
    """`sum` over what this micro-batch holds, and the `count` it will be divided by once all are added up."""

    sum: Tensor  # Float[], carries the gradient; of metrics also Float[n], a row of numbers
    count: Tensor  # Float[], does not
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The terms to minimise, and metrics to show, as (sum, count) pairs too."""

    terms: dict[str, Term]
    metrics: dict[str, Term] = field(default_factory=dict)

    def heard(self, told: Mapping[str, Sequence[Told]]) -> "Loss":
        """With what modules told while it was computed, by their names: losses of theirs become terms, which show the
        modules' (weighted) mean and weigh as much as all of them; figures become metrics, rows of them one a module.

        They are means over a micro-batch and share the first term's count, so that micro-batches weigh by it.
        """
        first = next(iter(self.terms.values()))
        sums: dict[str, list[tuple[Tensor, float]]] = {}  # (weighted mean of a module's calls, weight)
        metrics: dict[str, Term] = {}
        for module, calls in told.items():
            units: dict[str, int] = {}  # of the calls that have this loss: those without gradients have none
            for call in calls:
                for name in call.losses:
                    units[name] = units.get(name, 0) + call.units
            for call in calls:
                for name, (value, weight) in call.losses.items():
                    share = call.units / units[name]
                    sums.setdefault(name, []).append((value * share * weight, weight * share))
                for name, value in call.figures.items():
                    name = f"{name}/{module}" if value.ndim else name
                    term = Term(value * call.units, value.new_tensor(call.units))
                    before = metrics.get(name)
                    metrics[name] = Term(before.sum + term.sum, before.count + term.count) if before else term
        terms = {}
        for name, pairs in sums.items():
            weight = sum(w for _, w in pairs)
            terms[name] = Term(sum(v for v, _ in pairs) / weight * first.count, first.count, weight)
        return Loss(self.terms | terms, self.metrics | metrics)


def body_of(start: Config, classes: int = 0) -> Config:
    """What is kept of a model to begin with: of one that was made for a single objective, what other ones can use.

    An objective that goes on from something else has a `going_on` of its own, called like this. classes: in the data.
    """
    return getattr(start, "body", start)


def with_classes(start: Config, classes: int) -> Config:
    """The body with a classifier of so many classes, unless it has one."""
    body = body_of(start)
    return body.but({"classes": classes}) if getattr(body, "classes", None) == 0 else body
