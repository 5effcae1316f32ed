"""Which experts read how much: by layer, at the end and while a model learned, from what its log tells.

An evaluation logs `load/LAYER`, each expert's share of all assignments; training logs `dropped`. A share is compared
with the even one, 1/E, so that layers with other numbers of experts can be compared, too.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from onefold.study.pages.curves import Chart
from onefold.study.runs import Log, number

ACROSS, HIGH = 640, 26  # the width of a heat map, and the height of a row, in pixels
WIDEST, NUMBERED = 64, 26  # of a square; from this width on it has its share written in it
FARTHEST = 8  # times the even share, or a part of it, from which on a colour is no stronger
SHOWN, STRIP, EVALUATIONS = 4, 9, 4  # layers whose course is drawn, an expert's height there, evaluations needed
MUCH = 0.5  # of what experts were given; who drops more has made a mistake
LISTED = 8  # experts in a sentence
KEY = [
    (name, color, "dots")
    for name, color in (("more than its even share", "series-1"), ("less", "series-2"), ("nothing", "ink"))
]


def loads(log: Log) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By layer: the steps of its evaluations, Float[n], and each expert's share of the assignments, Float[n, E]."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for record in log.records:
        for name, load in (record.get("held_out") or {}).items():
            if name.startswith("load/") and load and all(number(share) is not None for share in load):
                found.setdefault(name.removeprefix("load/"), []).append((record["step"], load))
    return {
        layer: (np.array([step for step, _ in rows]), np.array([load for _, load in rows], float))
        for layer, rows in found.items()
        if len({len(load) for _, load in rows}) == 1
    }


def advice(log: Log) -> list[str]:
    """A line for all that is wrong with a layer's experts, with what to change: idle ones, and what was dropped."""
    told = []
    for layer, (_, shares) in loads(log).items():
        idle = np.flatnonzero(shares[-1] == 0)
        if len(idle):
            listed = ", ".join(map(str, idle[:LISTED])) + (", …" if len(idle) > LISTED else "")
            told.append(
                f"{layer}: {len(idle)} of {shares.shape[1]} experts read nothing that was held out ({listed}); raise "
                "router.balance (of noisy_top_k: router.load), which spreads tokens, or take fewer experts"
            )
    _, dropped = log.series("dropped")
    if len(dropped) and (last := float(np.median(dropped[-max(1, len(dropped) // 10) :]))) > MUCH:
        told.append(
            f"{last:.0%} of what tokens asked of experts was dropped in the end: raise capacity (1.25 is usual, null "
            "drops nothing), or router.each where experts choose"
        )
    return told


def expert_charts(log: Log) -> list[Chart]:
    """A heat map of layers and experts at the last evaluation, and of the least even layers while they learned."""
    found = loads(log)
    if not found:
        return []
    last = {layer: shares[-1] for layer, (_, shares) in found.items()}
    charts = [Chart(_at_the_end(last), title="Who reads how much", note=_extremes(last), key=KEY)]
    uneven = sorted(last, key=lambda layer: -float(last[layer].max() * len(last[layer])))[:SHOWN]
    courses = {layer: found[layer] for layer in found if layer in uneven and len(found[layer][0]) >= EVALUATIONS}
    if courses:
        some = f"the {SHOWN} least even layers; " if len(found) > SHOWN else ""
        charts.append(Chart(_courses(courses), title="While it learned", note=f"{some}a row for each expert", key=KEY))
    return charts


def _at_the_end(last: dict[str, np.ndarray]) -> Markup:
    most = max(map(len, last.values()))
    wide = min(WIDEST, ACROSS / most)
    parts, left = [], _left(last)
    for y, (layer, shares) in enumerate(last.items()):
        parts.append(_text(left - 10, (y + 0.5) * HIGH, _name(layer), "end"))
        for e, share in enumerate(shares):
            title = f"{layer}, expert {e}: {share:.1%} of all, {share * len(shares):.2f} times its even share"
            square = _square(left + e * wide, y * HIGH, wide, HIGH, share * len(shares))
            if wide >= NUMBERED:
                square += _number(left + (e + 0.5) * wide, (y + 0.5) * HIGH, share, share * len(shares))
            parts.append(Markup("<g><title>{}</title>{}</g>").format(title, square))
    bottom = len(last) * HIGH
    every = max(1, math.ceil(most / 16))
    parts += [_text(left + (e + 0.5) * wide, bottom + 14, str(e), "middle") for e in range(0, most, every)]
    parts.append(_text(left + most * wide / 2, bottom + 32, "expert", "middle"))
    return _svg(parts, left + most * wide, bottom + 42, "Shares of experts by layer")


def _courses(courses: dict[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    parts, left, top = [], _left(courses), 0.0
    end = max(steps[-1] for steps, _ in courses.values())
    for layer, (steps, shares) in courses.items():
        count = shares.shape[1]
        high = max(STRIP if count <= 16 else STRIP * 16 / count, 1.0)
        # an evaluation stands for the time since the one before it
        edges = np.concatenate(([0], steps)) / end * ACROSS
        parts.append(_text(left - 10, top + count * high / 2, _name(layer), "end"))
        for i in range(len(steps)):
            for e in range(count):
                square = _square(left + edges[i], top + e * high, edges[i + 1] - edges[i], high, shares[i, e] * count)
                title = f"{layer}, expert {e}, step {int(steps[i]):,}: {shares[i, e]:.1%} of all"
                parts.append(Markup("<g><title>{}</title>{}</g>").format(title, square))
        top += count * high + 8
    parts += [_text(left, top + 8, "0", "start"), _text(left + ACROSS, top + 8, f"{int(end):,} steps", "end")]
    return _svg(parts, left + ACROSS, top + 20, "Shares of experts while they learned")


def _extremes(last: dict[str, np.ndarray]) -> str:
    most, layer = max((float(shares.max() * len(shares)), layer) for layer, shares in last.items())
    idle = sum(int((shares == 0).sum()) for shares in last.values())
    told = f"percent of what was held out; the busiest reads {most:.1f} times its even share ({_name(layer)})"
    return f"{told}, {idle} read nothing" if idle else told


def _name(layer: str) -> str:
    """ "encoder.blocks.3.ffn" as "encoder 4": people count layers from one."""
    match = re.fullmatch(r"(?:(.*)\.)?blocks\.(\d+)\.[\w.]+", layer)
    if not match:
        return layer
    return f"{match[1] or 'layer'} {int(match[2]) + 1}"


def _left(layers: Sequence[str]) -> int:
    return 20 + int(6.4 * max(len(_name(layer)) for layer in layers))


def _square(x: float, y: float, wide: float, high: float, times: float) -> Markup:
    """The colour is the stronger, the more or the less than its even share an expert reads."""
    strength = min(1.0, abs(math.log(times)) / math.log(FARTHEST)) if times else 1.0
    color = "var(--accent)" if times > 1 else "var(--series-2)" if times else "var(--ink)"
    gap = 1.0 if min(wide, high) > 5 else 0.0
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(wide - gap, 0.5):.1f}" height="{max(high - gap, 0.5):.1f}"'
    return Markup(
        f'<rect {box} fill="var(--line)" fill-opacity="0.45"/>'
        f'<rect {box} fill="{color}" fill-opacity="{strength:.2f}"/>'
    )


def _number(x: float, y: float, share: float, times: float) -> Markup:
    strong = times == 0 or abs(math.log(times)) > 0.6 * math.log(FARTHEST)
    ink = "var(--surface)" if strong else "var(--ink)"
    text = "0" if share == 0 else f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return _text(x, y, text, "middle", f"fill: {ink}; stroke: none")


def _text(x: float, y: float, text: str, anchor: str, style: str = "fill: var(--muted)") -> Markup:
    return Markup(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="central" style="{style}">'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[Markup], wide: float, high: float, title: str) -> Markup:
    return Markup(
        f'<svg class="chart experts" role="img" aria-label="{title}" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'style="max-width: {wide:.0f}px" font-size="11">{"".join(parts)}</svg>'
    )
