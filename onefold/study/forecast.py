"""When would longer training of the same model reach a target? An extrapolation that says how little it knows.

The held-out curve is fitted by L(t) = E + A·t^−p: E is where this model size levels off. On few points p and E trade
off against each other, so residuals are resampled (a bootstrap) and two more shapes are fitted, a power law without a
floor and a straight line in log t; every shape that describes the curve about as well as the best one votes. The
verdict is a range, or that the curve levels off above the target.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

EXPONENTS = np.geomspace(0.03, 3, 50)
RESAMPLES = 100  # of each shape and each part of the curve
HORIZON = 100  # times the length of the run: beyond, an extrapolation is a guess
SETTLED = 0.05  # share of the run after which the curve counts: before, it is warm-up
STABLE = 0.98  # share of the peak learning rate above which a point is not yet cooled down
TOLERANCE = 1.5  # a shape whose squared residuals are within this factor of the best one's votes too

Verdict = Literal["reached", "forecast", "beyond", "out of reach", "unknown"]


@dataclass(frozen=True)
class Forecast:
    """When a target is reached: minutes of training, with the 10th and 90th percentile of what fits the curve.

    `verdict`: "reached" (`minutes` is when), "forecast" (within 100 times the run), "beyond" that, "out of reach" of
    this model size (it levels off at `floor`), or "unknown" (the curve is too short to tell). `text` says it in words.
    """

    target: float
    verdict: Verdict
    text: str
    minutes: float | None = None
    low: float | None = None
    high: float | None = None  # None in a forecast: some fits never get there
    floor: float | None = None
    reaching: float | None = None  # share of the fits that get there within the horizon
    path: tuple[tuple[float, float, float, float], ...] = ()  # (minutes, 10th, 50th, 90th percentile of bits per byte)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def minutes_until(
    target: float,
    seconds: Sequence[float],
    bits: Sequence[float],
    lr: Sequence[float] | None = None,
    name: str = "the target",
    final: float | None = None,
    seed: int = 0,
) -> Forecast:
    """Forecast from held-out bits per byte over seconds of training, in order.

    With the learning rate of each point, the shape is fitted where it was still high, and the gain of the cool-down at
    the end is taken to be the same for a longer run; without, a cooled-down end makes the forecast optimistic. A curve
    that was measured on a part of the held-out text is moved so that it ends at `final`, measured on all of it.
    """
    time, level = np.asarray(seconds, float), np.asarray(bits, float)
    rate = np.ones(len(time)) if lr is None else np.asarray(lr, float)
    good = np.isfinite(time) & np.isfinite(level) & (time > 0)
    time, level, rate = time[good], level[good], rate[good]
    if final is not None and len(level):
        level = level + final - level[-1]
    below = np.flatnonzero(level <= target)
    if len(below):
        minutes = float(time[below[0]]) / 60
        return Forecast(target, "reached", f"{name} fell after {_minutes(minutes)} of training.", minutes=minutes)
    fitted = _stable(time, rate)
    if fitted.sum() < 5 or time[fitted][-1] < 3 * time[fitted][0]:
        return Forecast(target, "unknown", f"The run is too short to tell when {name} would fall.")
    curves, noise = _votes(time[fitted], level[fitted], np.random.default_rng(seed))
    if not fitted[-1]:  # what the cool-down gained at the end of this run, it gains at the end of any
        curves[0] += level[-1] + noise - _value(curves, time[-1])
    return _verdict(target, name, float(time[-1]), curves)


def _stable(time: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Which points to fit: those after the warm-up, and before the learning rate goes down if they are enough."""
    settled = time >= SETTLED * time[-1] if len(time) else np.zeros(0, bool)
    high = settled & (rate >= STABLE * np.nanmax(rate, initial=0))
    return high if high.sum() >= 6 and time[high][-1] >= 4 * time[high][0] else settled


def _verdict(target: float, name: str, end: float, curves: np.ndarray) -> Forecast:
    when = _when(curves, target)
    when = np.where(when <= HORIZON * end, when, np.inf) / 60
    reaching = float(np.isfinite(when).mean())
    low, middle, high = (float(v) if np.isfinite(v) else None for v in _percentiles(when))
    floors = curves[0][curves[2] > 0]
    floor = float(np.median(floors)) if len(floors) else None
    figures: dict[str, Any] = {"low": low, "high": high, "floor": floor, "reaching": reaching}
    figures["path"] = _path(curves, end, min(HORIZON * end, max(10 * end, 60 * 1.5 * (high or middle or 0))))
    if low is not None and middle is not None:
        width = _range(low, high) if high else f"{_minutes(low)} at least, perhaps never"
        times = f", {middle * 60 / end:.0f} times this run" if middle * 60 > 2 * end else ""
        text = f"{name} should fall after about {_minutes(middle)} of training at this size ({width}){times}."
        return Forecast(target, "forecast", text, minutes=middle, **figures)
    if floor is not None and floor > target - 0.005 and reaching < 0.25:
        dissent = f" ({reaching:.0%} of the fits disagree)" if reaching >= 0.05 else ""
        text = (
            f"{name} is not within reach of this model size: its curve levels off near {floor:.2f} bits per byte, "
            f"and {target:.2f} is needed{dissent}. A larger model may get there."
        )
        return Forecast(target, "out of reach", text, **figures)
    chance = f"; {reaching:.0%} of the fits get there, {_minutes(low)} at the earliest" if low else ""
    text = (
        f"{name} is further away than this curve can tell (over {_minutes(HORIZON * end / 60)} at this size{chance})."
    )
    return Forecast(target, "beyond", text, **figures)


def _votes(time: np.ndarray, level: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Float[3, N]: (E, A, p) of all fits that describe the curve, and a draw of their noise.

    p = 0 stands for the line E − A·ln t. Every shape is fitted to the whole and to the later parts of the curve: real
    ones are not exactly of any shape, and what the early points say weighs less the further one looks ahead.
    """
    votes, noises = [], []
    for start in (0, 0.15, 0.3):
        part = time >= start * time[-1]
        if part.sum() < 6 and start:
            continue
        fits = [(shape, *(x[0] for x in shape(time[part], level[None, part])[3:])) for shape in SHAPES]
        best = max(min(error for *_, error in fits), 1e-12)
        for shape, curve, error in fits:
            if error <= TOLERANCE * best:
                # Residuals of n points and 3 parameters are too small by sqrt((n − 3) / n): undo that.
                n = int(part.sum())
                residual = (level[part] - curve) * np.sqrt(n / max(1, n - 3))
                noise = random.choice(residual, (RESAMPLES, n))
                votes.append(np.stack(shape(time[part], curve + noise)[:3]))
                noises.append(random.choice(residual, RESAMPLES))
    return np.concatenate(votes, axis=1), np.concatenate(noises)


def _path(curves: np.ndarray, first: float, last: float) -> tuple[tuple[float, float, float, float], ...]:
    """What the fits expect between two times, for a picture."""
    times = np.geomspace(first, last, 32)
    band = np.array([np.percentile(_value(curves, time), (10, 50, 90)) for time in times])
    low, middle, high = band.T.tolist()
    return tuple(zip((times / 60).tolist(), low, middle, high))


def _value(curves: np.ndarray, time: float) -> np.ndarray:
    start, amount, p = curves
    return np.where(p > 0, start + amount * time**-p, start - amount * np.log(time))


def _when(curves: np.ndarray, target: float) -> np.ndarray:
    """Seconds at which each curve reaches the target; infinity where it levels off above."""
    start, amount, p = curves
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        power = ((target - start) / amount) ** (-1 / np.where(p > 0, p, 1))
        line = np.exp((start - target) / amount)
    return np.where(p > 0, np.where(start < target, power, np.inf), line)


def _power_with_floor(time: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Least squares for E and A at each p of a grid, the best of them by row; E is never negative."""
    return _best([_linear(time**-p, levels, p) for p in EXPONENTS])


def _power(time: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, ...]:
    return _best([_linear(time**-p, levels, p, floor=False) for p in EXPONENTS])


def _line(time: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, ...]:
    return _linear(-np.log(time), levels, 0.0, positive=False)


SHAPES = (_power_with_floor, _power, _line)


def _linear(
    basis: np.ndarray, levels: np.ndarray, p: float, floor: bool = True, positive: bool = True
) -> tuple[np.ndarray, ...]:
    """(E[R], A[R], p[R], curve[R, N], squared error[R]) of levels[R, N] = E + A · basis[N], with A > 0."""
    through = levels @ basis / (basis @ basis)
    if floor:
        amount = (levels - levels.mean(1, keepdims=True)) @ (basis - basis.mean()) / ((basis - basis.mean()) ** 2).sum()
        start = levels.mean(1) - amount * basis.mean()
        if positive:
            amount, start = np.where(start < 0, through, amount), np.maximum(start, 0)
    else:
        amount, start = through, np.zeros(len(levels))
    amount = np.maximum(amount, 1e-9)
    curve = start[:, None] + amount[:, None] * basis
    return start, amount, np.full(len(levels), p), curve, ((levels - curve) ** 2).sum(1)


def _best(fits: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    chosen = np.argmin([fit[-1] for fit in fits], axis=0)
    rows = np.arange(len(chosen))
    return tuple(np.stack([fit[i] for fit in fits])[chosen, rows] for i in range(5))


def _percentiles(when: np.ndarray) -> list[float]:
    ordered = np.sort(when)
    return [ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9)]


def _range(low: float, high: float) -> str:
    low_text, high_text = _minutes(low), _minutes(high)
    if low_text == high_text:
        return f"{low_text} by all fits"
    (first, unit), last = low_text.split(), high_text
    return f"{first} to {last}" if last.endswith(unit) else f"{low_text} to {last}"


def _minutes(value: float) -> str:
    if value < 90:
        return f"{value:.1f} minutes" if value < 10 else f"{value:.0f} minutes"
    return f"{value / 60:.1f} hours" if value < 48 * 60 else f"{value / 1440:.0f} days"
