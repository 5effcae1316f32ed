"""The charts of a run: how it learned, how fast it was, and what a longer run may reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from onefold.study.pages.charts import Axis, Curve, Level, draw, smooth
from onefold.study.pages.words import duration, short
from onefold.study.runs import Log, number

WIDE, NARROW, SMALL = (768, 360), (340, 300), (360, 178)
SHARES = ("mfu", "idle", "dropped")  # told in percent
Key = tuple[str, str, str]  # name, colour, style


@dataclass(frozen=True)
class Chart:
    """A drawing for a page: one for wide screens, if need be another for narrow ones, and a key to its colours."""

    wide: Markup
    narrow: Markup | None = None
    title: str = ""
    note: str = ""
    tab: str = ""
    key: list[Key] = field(default_factory=list)


def learning(log: Log, unit: str, baselines: Sequence[Level] = ()) -> list[Chart]:
    """Training and held-out loss over time and over steps; in bits per byte where the evaluations tell how. Of a policy
    it is the reward: its loss compares answers with each other, and says nothing.

    unit: what the loss is counted in, where that is known.
    """
    scale, policy = log.bits_per_nat, bool(len(log.series("reward")[0]))
    shown = "reward" if policy else "loss"
    charts = []
    for tab, x, divide in (("by time", "seconds", 0), ("by step", "step", 1)):
        divisor, along = (1.0, "steps") if divide else time_unit(log.last("seconds") or 0)
        train = log.series(shown, x=x)
        unseen = log.series("held_out", "bits_per_byte" if scale else shown, x=x)
        if len(train[0]) + len(unseen[0]) < 2:
            continue
        curves = _loss_curves((train[0] / divisor, train[1] * (scale or 1)), (unseen[0] / divisor, unseen[1]))
        loss = f"loss, {unit}" if unit and not policy else shown
        ends = (None, None) if policy else window(curves, baselines if scale else ())
        y = Axis("bits per byte" if scale else loss, *ends)
        levels = baselines if scale else ()
        drawn = [
            draw(curves if wide else _bare(curves), Axis(along), y, levels, size, f"{shown.capitalize()} {tab}", margin)
            for wide, size, margin in ((True, WIDE, 112), (False, NARROW, 34))
        ]
        key: list[Key] = [
            (name, color, style)
            for name, color, style, there in (
                ("training batches", "series-2", "line", len(train[0])),
                ("held-out prompts" if policy else "held-out files", "series-1", "dots", len(unseen[0])),
                ("baselines", "muted", "dashed", len(levels)),
            )
            if there
        ]
        charts.append(Chart(*drawn, tab=tab, key=key))
    return charts


def _loss_curves(train: tuple[np.ndarray, np.ndarray], unseen: tuple[np.ndarray, np.ndarray]) -> list[Curve]:
    x, y = train
    soft = smooth(y, len(y) / 80)
    curves = []
    if len(y):
        if len(y) > 60:
            curves.append(Curve(x, y, "series-2", "faint"))
        label = "" if len(unseen[0]) else f"train {soft[-1]:.2f}"
        curves.append(Curve(x, soft, "series-2", label=label))
    if len(unseen[0]):
        curves.append(Curve(*unseen, "series-1", "dots", label=f"held-out {unseen[1][-1]:.2f}"))
    return curves


def _bare(curves: Sequence[Curve]) -> list[Curve]:
    """The same with only the number as a label: all that a narrow picture has room for."""
    return [Curve(c.x, c.y, c.color, c.style, c.label.split(" ")[-1], c.band) for c in curves]


def window(curves: Sequence[Curve], levels: Sequence[Level]) -> tuple[float | None, float | None]:
    """Which part of a loss axis to show: the first steep fall would press all the rest flat, so it may stand out."""
    lines = [c for c in curves if c.style != "faint" and len(c.y)]
    last = min(float(c.y[-1]) for c in lines)
    low = min([*(float(np.nanmin(c.y)) for c in lines), *(level.value for level in levels if level.value > 0.6 * last)])
    late = max(float(c.y[len(c.y) // 12]) for c in lines)
    near = [level.value for level in levels if level.value < 1.5 * last]
    high = max(late, *near) if near else late
    pad = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    return low - pad, high + pad


def time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 150:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 150 * 60 else (3600.0, "hours")


def inside(log: Log) -> list[Chart]:
    """Learning rate, gradient norm, throughput and MFU over steps, and how a policy did; each if it was logged."""
    panels = []
    for title, name, color, log_scale in (
        ("KL to the reference, nats", "kl", "series-1", False),
        ("Tokens of an answer", "length", "series-3", False),
        ("Entropy, nats per token", "entropy", "series-5", False),
        ("Busiest expert, times its even share", "busiest", "series-1", False),
        ("Experts without a token", "idle", "series-2", False),
        ("Asked of experts and dropped", "dropped", "series-5", False),
        ("Learning rate", "lr", "series-3", False),
        ("Gradient norm", "grad_norm", "series-4", True),
        (f"{log.unit.capitalize()} per second", f"{log.unit}_per_second", "series-1", False),
        ("Model FLOPs utilisation", "mfu", "series-5", False),
    ):
        x, y = log.series(name)
        if len(x) < 2 or not np.any(y):
            continue
        if log_scale:
            x, y = x[y > 0], y[y > 0]
        noisy = name != "lr"
        soft = np.exp(smooth(np.log(y), len(y) / 80)) if log_scale else smooth(y, len(y) / 80)
        curves = [Curve(x, y, color, "faint"), Curve(x, soft, color)] if noisy else [Curve(x, y, color)]
        low, high = (float(y.min()), float(y.max())) if log_scale else (0.0, 1.12 * float(np.percentile(y, 99)))
        low, high = min(low, 1.12 * float(y.min())), max(high, 0.0)  # rewards may be negative
        text = (lambda v: f"{v:.0%}") if name in SHARES else short
        wide = draw(curves, Axis("steps"), Axis("", low, high, log_scale, text), (), SMALL, title, margin=12)
        panels.append(Chart(wide, title=title, note=_typical(name, y)))
    return panels


def _typical(name: str, y: np.ndarray) -> str:
    if name == "lr":
        return f"peak {short(float(y.max()))}"
    middle = float(np.median(y))
    return f"median {middle:.0%}" if name in SHARES else f"median {short(middle)}"


def outlook(log: Log, estimate: Mapping[str, Any], name: str, final: float | None = None) -> Chart | None:
    """The held-out curve, moved to end at `final`, and where its fits lead, on a logarithmic axis of minutes."""
    path = np.array(estimate.get("path") or [], float).reshape(-1, 4)
    x, y = log.series("held_out", "bits_per_byte", x="seconds")
    target = number(estimate.get("target"))
    if len(path) < 2 or len(x) < 2 or target is None:
        return None
    x, y = x / 60, y if final is None else y + final - y[-1]
    begin = x >= 0.04 * x[-1]
    minutes, low, middle, high = path.T
    fits = Curve(minutes, middle, "series-3", "dashed", f"forecast {middle[-1]:.2f}", (low, high))
    curves = [fits, Curve(x[begin], y[begin], "series-1", "dots")]
    bottom, top = min(target, float(low.min())), float(y[begin].max())
    y_axis = Axis("bits per byte", bottom - 0.06 * (top - bottom), top + 0.04 * (top - bottom))
    x_axis = Axis("minutes of training", float(x[begin][0]), float(minutes[-1]), True, _clock)
    levels = [Level(name, target)]
    drawn = [
        draw(curves if wide else _bare(curves), x_axis, y_axis, levels, size, "Forecast", margin)
        for wide, size, margin in ((True, (768, 300), 112), (False, (340, 260), 34))
    ]
    key = [("held-out files", "series-1", "dots"), ("what fits the curve, with 80% of the fits", "series-3", "dashed")]
    return Chart(*drawn, key=key)


def _clock(minutes: float) -> str:
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.0f}" if minutes < 90 else duration(minutes * 60).replace(".0 ", " ").replace(" hours", " h")


def overlay(names: Sequence[str], logs: Sequence[Log], metric: str | None) -> list[Chart]:
    """Held-out curves of several runs over each other, over time and over steps; training loss where there are none."""
    charts = []
    path, unit = (("held_out", metric), metric.replace("_", " ")) if metric else (("loss",), "training loss")
    for tab, x in (("by time", "seconds"), ("by step", "step")):
        longest = max((log.last(x) or 0) for log in logs)
        divisor, axis = (1.0, "steps") if x == "step" else time_unit(longest)
        curves, key = [], []
        for i, (name, log) in enumerate(zip(names, logs), 1):
            along, level = log.series(*path, x=x)
            if len(along):
                level = level if metric else smooth(level, len(level) / 60)
                label = f"{name[:12]} {level[-1]:.2f}"
                curves.append(Curve(along / divisor, level, f"series-{i}", "dots" if metric else "line", label))
                key.append((name, f"series-{i}", "line"))
        if len(curves) < 1 or sum(len(c.x) for c in curves) < 2:
            continue
        y = Axis("held-out " + unit if metric else unit, *window(curves, ()))
        drawn = [
            draw(curves if wide else _bare(curves), Axis(axis), y, (), size, f"{unit} {tab}", margin)
            for wide, size, margin in ((True, WIDE, 130), (False, NARROW, 34))
        ]
        charts.append(Chart(*drawn, tab=tab, key=key))
    return charts
