"""How a loss falls with compute: a power law for each series of runs, and one chart of them all.

    L(C) = factor · C^-exponent        a straight line of log L over log C, by least squares

Every final point that is given counts, not only the lower envelope of all: that keeps the luckiest seed of each
budget, whose loss is too low, and leaves nothing to tell the spread by. So give the points of one size for a budget,
chosen beforehand or by the mean of its seeds.

Seeds of one budget share what the law misses there, so they are averaged (as log L) before the fit, and budgets, not
runs, are what the interval rests on: Student's t with two degrees of freedom less than there are budgets. A constant
that the loss cannot fall below is not fitted; over less than three decades it trades off against the exponent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from onefold.core.errors import UserError
from onefold.study.pages.charts import MARKERS, Axis, Curve, draw

Point = tuple[float, float]  # compute in FLOPs, loss; seeds are points of the same compute


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = factor · C^-exponent, and the interval from `low` to `high` that holds the exponent.

    Without a third budget nothing tells how well a line fits: the interval is infinite then.
    """

    factor: float
    exponent: float
    low: float
    high: float
    middle: float  # mean of log C
    quantile: float  # of Student's t
    noise: float  # standard error of a mean log L; with `spread`, what the band is made of
    spread: float  # root of the sum of squares of log C around its mean
    budgets: int

    def loss(self, compute: np.ndarray | float) -> np.ndarray:
        return self.factor * np.asarray(compute, float) ** -self.exponent

    def band(self, compute: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Between what losses the law itself lies at `compute`, with the confidence of the fit."""
        away = (np.log(np.asarray(compute, float)) - self.middle) / self.spread
        half = self.quantile * self.noise * np.sqrt(1 / self.budgets + away**2)
        return self.loss(compute) * np.exp(-half), self.loss(compute) * np.exp(half)


def fit(points: Sequence[Point], confidence: float = 0.95) -> PowerLaw:
    """The power law through `points` of one series, in any order.

    Errors: UserError with fewer than two budgets, or where compute or loss is not a positive number.
    """
    found = np.asarray(points, float).reshape(-1, 2)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise UserError("a power law needs compute and losses that are positive numbers: leave out runs that diverged")
    budgets = np.unique(found[:, 0])
    if len(budgets) < 2:
        raise UserError(f"a power law needs two amounts of compute at least, not {len(budgets)}: train with another")
    x, y = np.log(budgets), np.array([np.log(found[found[:, 0] == c, 1]).mean() for c in budgets])
    middle, free = x.mean(), len(x) - 2
    spread = float(np.sqrt(((x - middle) ** 2).sum()))
    slope = float(((x - middle) * y).sum()) / spread**2
    left = y - y.mean() - slope * (x - middle)
    noise = float(np.sqrt((left**2).sum() / free)) if free else np.inf
    quantile = student(confidence, free) if free else np.inf
    half = quantile * noise / spread
    return PowerLaw(
        factor=float(np.exp(y.mean() - slope * middle)),
        exponent=-slope,
        low=-slope - half,
        high=-slope + half,
        middle=float(middle),
        quantile=quantile,
        noise=noise,
        spread=spread,
        budgets=len(x),
    )


def student(confidence: float, free: int) -> float:
    """What |t| stays below with this confidence, Student's t having `free` degrees of freedom.

    With t = √free · tan θ the density is cos(θ)^(free - 1) up to a factor, over a finite range.
    """
    theta = np.linspace(0, np.pi / 2, 4_001)
    density = np.cos(theta) ** (free - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(free) * np.tan(np.interp(confidence * below[-1], below, theta)))


def scaling_chart(
    series: Mapping[str, Sequence[Point]],
    x: str = "training compute, FLOPs",
    y: str = "held-out loss, nats",
    confidence: float = 0.95,
    title: str = "Loss against compute",
) -> Markup:
    """The points of every series, its power law and the band of that, both axes logarithmic. Up to six series.

    Errors: UserError as `fit`.
    """
    curves: list[Curve] = []
    for number, (name, points) in enumerate(series.items()):
        law, color = fit(points, confidence), f"series-{number + 1}"
        compute, loss = np.asarray(points, float).T
        along = np.geomspace(compute.min(), compute.max(), 60)
        band = law.band(along) if np.isfinite(law.high) else None
        label = f"{name} ∝ C^{-law.exponent:.2f}".replace("^-", "^−")
        curves.append(Curve(along, law.loss(along), color, "line", label, band))
        curves.append(Curve(compute, loss, color, "points", marker=MARKERS[number]))
    xs = np.concatenate([curve.x for curve in curves])
    ys = np.concatenate([values for curve in curves for values in (curve.y, *(curve.band or ()))])
    across = Axis(x, xs.min() / 1.12, xs.max() * 1.12, True, power_of_ten)
    up = Axis(y, ys.min() / 1.03, ys.max() * 1.03, True)
    return draw(curves, across, up, size=(768, 400), title=title, margin=150)


def power_of_ten(value: float) -> str:
    """12500000000.0 → "1.25·10¹⁰"."""
    digits, power = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    raised = "10" + str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return raised if digits == "1" else f"{digits}·{raised}"
