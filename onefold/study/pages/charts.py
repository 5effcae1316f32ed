"""Plots as small SVG that lives in a page: its colours are the page's CSS variables, its font the page's font.

One drawing so serves the light and the dark theme, and text stays text: selectable, searchable, small.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from markupsafe import Markup, escape

from onefold.study.pages.words import short

# matplotlib wants a colour, the page a variable: these stand-ins are drawn and then replaced.
PALETTE = {
    "ink": "#00000a",
    "muted": "#00000b",
    "line": "#00000c",
    "paper": "#00000d",
    **{f"series-{i}": f"#0000a{i}" for i in range(1, 7)},
}
POINTS = 360  # of a line: more cannot be seen
GAP = 14.0  # points between two labels
MARKERS = "osD^vP"  # of points in series beside each other: shapes are told apart where colours are not


@dataclass(frozen=True)
class Curve:
    """A line, a faint line (what is noisy), dots joined by a line, points alone, or a dashed line.

    `label` stands at its end.
    """

    x: np.ndarray
    y: np.ndarray
    color: str = "series-1"
    style: Literal["line", "faint", "dots", "points", "dashed"] = "line"
    label: str = ""
    band: tuple[np.ndarray, np.ndarray] | None = None  # low and high around y
    marker: str = "o"


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line with a name, as of a baseline."""

    name: str
    value: float
    color: str = "muted"


@dataclass(frozen=True)
class Axis:
    """What an axis is called, which part of it is shown (None: all), and how its ticks read."""

    name: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    text: Callable[[float], str] | None = None


def draw(
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    levels: Sequence[Level] = (),
    size: tuple[int, int] = (760, 360),
    title: str = "",
    margin: float = 96,
) -> Markup:
    """An inline `<svg>` as wide as its place. At `size`, in CSS pixels, its text has the page's size.

    `margin` is the room for labels at the right; when it is small, levels are named inside, at the left. `title` is
    what a screen reader says.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(len(curves) + sum(len(c.x) for c in curves), title)):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72))
        top = 24 if y.name else 8
        axes = figure.add_axes((48 / size[0], 40 / size[1], 1 - (48 + margin) / size[0], 1 - (40 + top) / size[1]))
        for i, curve in enumerate(curves):
            _line(axes, curve, 2 + i)
        _scale(axes, x, y, curves)
        for level in levels:
            axes.axhline(level.value, color=PALETTE[level.color], lw=1, dashes=(4, 3), alpha=0.75, zorder=1.5)
        named = [(level.value, f"{level.name} {short(level.value)}", level.color, "normal") for level in levels]
        ends = [(float(c.y[-1]), c.label, c.color, "bold") for c in curves if c.label and len(c.y)]
        if margin < 90:
            _label(axes, named, at=0, lift=7)
            _label(axes, ends)
        else:
            _label(axes, named + ends)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue(), title)


def standalone(drawing: Markup) -> str:
    """A drawing as a file of its own: with the colours of the light page, on its paper, in a usual font."""
    css = (Path(__file__).parent / "page.css").read_text("utf-8")
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#\w+)", css))
    colors |= {name: colors[other] for name, other in re.findall(r"--([\w-]+): var\(--([\w-]+)\)", css)}
    svg = re.sub(r"var\(--([\w-]+)\)", lambda name: colors[name[1]], str(drawing))
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, sans-serif"'
    paper = f'><rect width="100%" height="100%" fill="{colors["surface"]}"/>'
    return svg.replace("<svg", head, 1).replace(">", paper, 1)


def smooth(y: np.ndarray, window: float) -> np.ndarray:
    """A Gaussian average over about `window` points; at the ends over those that there are."""
    if window < 1 or len(y) < 3:
        return y
    reach = min(int(3 * window), len(y) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / window) ** 2)
    full = np.convolve(y, kernel)[reach : reach + len(y)]
    return full / np.convolve(np.ones(len(y)), kernel)[reach : reach + len(y)]


def thin(x: np.ndarray, y: np.ndarray, most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points; of each group the lowest and the highest, so that a spike is never lost."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2).astype(int)
    kept = [a + np.array([np.argmin(y[a:b]), np.argmax(y[a:b])]) for a, b in pairwise(edges)]
    chosen = np.unique(np.concatenate([[0], *kept, [len(x) - 1]]))
    return x[chosen], y[chosen]


def _style(points: int, title: str) -> dict:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{title}{points}",
        "font.family": "sans-serif",
        "font.size": 11.5,
        "text.parse_math": False,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.edgecolor": PALETTE["line"],
        "axes.labelcolor": PALETTE["muted"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": PALETTE["line"],
        "grid.linewidth": 1,
        "text.color": PALETTE["ink"],
        "xtick.color": PALETTE["line"],
        "ytick.color": PALETTE["line"],
        "xtick.labelcolor": PALETTE["muted"],
        "ytick.labelcolor": PALETTE["muted"],
        "xtick.major.size": 4,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "xtick.minor.size": 0,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
    }


def _line(axes, curve: Curve, order: int) -> None:
    color = PALETTE[curve.color]
    if curve.band is not None:
        axes.fill_between(curve.x, *curve.band, color=color, alpha=0.16, lw=0, zorder=order)
    x, y = (curve.x, curve.y) if curve.style in ("dots", "points") else thin(curve.x, curve.y)
    if curve.style == "points":
        axes.plot(x, y, curve.marker, color=color, ms=6.5, mec=PALETTE["paper"], mew=1, zorder=order)
    elif curve.style == "faint":
        axes.plot(x, y, color=color, lw=0.8, alpha=0.3, zorder=order)
    elif curve.style == "dashed":
        axes.plot(x, y, color=color, lw=1.8, dashes=(3, 2.2), zorder=order)
    else:
        axes.plot(x, y, color=color, lw=2, zorder=order)
    if curve.style == "dots" and len(x) <= 60:
        axes.plot(x, y, curve.marker, color=color, ms=5.5, mec=PALETTE["paper"], mew=1.5, zorder=order)


def _scale(axes, x: Axis, y: Axis, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for axis, side, setter in ((x, axes.xaxis, axes.set_xlim), (y, axes.yaxis, axes.set_ylim)):
        if axis.log:
            (axes.set_xscale if side is axes.xaxis else axes.set_yscale)("log")
            side.set_minor_formatter(NullFormatter())
            side.set_minor_locator(NullLocator())
            low, high = side.get_view_interval() if axis.low is None or axis.high is None else (axis.low, axis.high)
            ratio = high / max(low, 1e-12)
            few = LogLocator(subs=(1,) if ratio > 500 else (1, 2, 5), numticks=8)
            side.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if ratio < 6 else few)
        else:
            side.set_major_locator(MaxNLocator(6 if side is axes.xaxis else 5, steps=[1, 2, 2.5, 5, 10]))
        side.set_major_formatter(FuncFormatter(lambda value, _, text=axis.text or short: text(value)))
        setter(axis.low, axis.high)
    if x.low is None and not x.log and (ends := [c.x[-1] for c in curves if len(c.x)]):
        axes.set_xlim(0, 1.008 * max(ends) or 1)  # room for the last dot
    axes.set_xlabel(x.name, labelpad=5)
    if y.name:
        axes.text(0, 1, y.name, transform=_above(axes), ha="left", va="bottom", color=PALETTE["muted"])
    axes.tick_params(axis="both", pad=6)


def _above(axes):
    from matplotlib.transforms import ScaledTranslation

    return axes.transAxes + ScaledTranslation(-44 / 72, 9 / 72, axes.figure.dpi_scale_trans)


def _label(axes, labels: list[tuple[float, str, str, str]], at: int = 1, lift: float = 0) -> None:
    """(value, text, color, weight) at an end, moved apart where they would overlap. What is outside has no label."""
    low, high = axes.get_ylim()
    shown = sorted(label for label in labels if low <= label[0] <= high)
    if not shown:
        return
    height = axes.get_position().height * axes.figure.get_figheight() * 72
    to_points = axes.transLimits.transform
    scaled = axes.yaxis.get_transform().transform
    wanted = [float(to_points((0, scaled(np.array([value]))[0]))[1]) * height for value, *_ in shown]
    for (value, text, color, weight), want, place in zip(shown, wanted, _apart(wanted, height)):
        axes.annotate(
            text,
            (at, value),
            xycoords=("axes fraction", "data"),
            xytext=(8 if at else 0, place - want + lift),
            textcoords="offset points",
            va="center",
            color=PALETTE[color],
            weight=weight,
            annotation_clip=False,
        )


def _apart(wanted: list[float], height: float) -> list[float]:
    """The nearest places (ascending) at least GAP apart: overlapping neighbours share a block around their mean."""
    blocks: list[list[float]] = []
    for want in wanted:
        blocks.append([want])
        while len(blocks) > 1 and _span(blocks[-2])[1] + GAP > _span(blocks[-1])[0]:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [low + i * GAP for block in blocks for low in [_span(block)[0]] for i in range(len(block))]
    return [min(place, height) for place in places]


def _span(block: list[float]) -> tuple[float, float]:
    middle, half = sum(block) / len(block), (len(block) - 1) * GAP / 2
    return middle - half, middle + half


def _inline(svg: str, title: str) -> Markup:
    """The drawing without what only files need, its identifiers unique in a page, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><").replace("xlink:href", "href")
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="{box[1] if box else ""}">'
    svg = head + svg[svg.index(">") + 1 :]
    salt = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'\bid="(?!p[0-9a-f]{10}|m[0-9a-f]{10})[^"]*"', "", svg)  # figure_1, axes_1, …: nobody refers to them
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>c{salt}-", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    for name, color in PALETTE.items():
        svg = svg.replace(color, f"var(--{name})")
    return Markup(svg)
