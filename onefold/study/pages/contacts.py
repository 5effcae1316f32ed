"""Contact maps: what a method is surest of above the diagonal, what touches below it."""

import numpy as np
from markupsafe import Markup, escape

SIDE = 480  # of the map, in pixels
MARGIN = 44
LEAST = 0.05  # of the highest score: what is fainter is not drawn
DRAWN = 6  # pairs for each residue, at most


def contact_chart(
    scores: np.ndarray,
    contacts: np.ndarray | None = None,
    known: np.ndarray | None = None,
    title: str = "",
    nearest: int = 6,
) -> Markup:
    """A map of Float[L, L] as an inline `<svg>`.

    Above the diagonal the L highest scores are green where residues touch and orange where they do not (all blue where
    nobody knows), the others grey, the darker the higher. Below it lie the contacts (Bool[L, L]). known: Bool[L], which
    residues have places; the others' rows and columns are shaded. Pairs nearer than `nearest` along the chain, which
    touch anyhow, lie in the band along the diagonal.
    """
    size = len(scores)
    cell = SIDE / size
    seen = np.ones(size, bool) if known is None else known
    parts = [f'<rect width="{SIDE}" height="{SIDE}" fill="var(--surface)" stroke="var(--line)"/>']
    parts += [_stripes(start, stop, cell) for start, stop in _runs(~seen)]
    parts.append(_band(size, nearest, cell))
    parts += [_tick(place, cell, SIDE) for place in _ticks(size)]
    first, second, shade = _drawn(scores, nearest)
    groups: dict[str, list[str]] = {}
    for rank, (i, j, dark) in enumerate(zip(first, second, shade)):
        color = "muted"
        if rank < size:
            judged = contacts is not None and seen[i] and seen[j]
            color = ("accent" if contacts[i, j] else "series-2") if judged else "series-3"  # type: ignore[index]
        groups.setdefault(color, []).append(_square(i, j, cell, 0.5 * dark if color == "muted" else 0.35 + 0.65 * dark))
    if contacts is not None:
        below, left = np.tril_indices(size, -1)
        touch = contacts[below, left]
        groups["ink"] = [
            _square(i, j, cell, 0.78 if i - j >= nearest else 0.25) for i, j in zip(below[touch], left[touch])
        ]
    parts += [f'<g fill="var(--{color})">{"".join(squares)}</g>' for color, squares in groups.items()]
    parts.append(f'<path d="M0 0L{SIDE} {SIDE}" stroke="var(--line)" stroke-width="1"/>')
    parts += _words(title, contacts is not None)
    side = SIDE + 2 * MARGIN
    return Markup(
        f'<svg class="chart contacts" role="img" aria-label="{escape(title or "Contact map")}"'
        f' viewBox="0 0 {side} {side}" width="{side}" style="max-width: 100%" font-size="12">'
        f'<g transform="translate({MARGIN} {MARGIN})">{"".join(parts)}</g></svg>'
    )


def _words(title: str, judged: bool) -> list[str]:
    """What stands around the map: its title, and what its halves and colours are."""
    words = [_label(0, -14, title, "start", "ink", bold=True)] if title else []
    if not judged:
        return [*words, _label(SIDE, -14, "the L surest pairs in blue", "end")]
    words.append(_label(0, SIDE + 33, "below the diagonal: what touches", "start"))
    for x, color, text in ((-231, "accent", "surest L: right"), (-114, "series-2", "wrong"), (-48, "muted", "others")):
        words.append(f'<rect x="{SIDE + x}" y="-19" width="9" height="9" fill="var(--{color})"/>')
        words.append(_label(SIDE + x + 14, -14, text, "start"))
    return words


def contact_table(
    scores: np.ndarray, sequence: str, contacts: np.ndarray | None = None, known: np.ndarray | None = None
) -> str:
    """CSV of all pairs six or more apart, the surest first: places from 1, residues, score, whether they touch."""
    first, second = np.triu_indices(len(scores), 6)
    given = scores[first, second]
    order = np.argsort(-np.nan_to_num(given, nan=-np.inf), kind="stable")
    lines = ["first,second,residues,score,contact"]
    for i, j, score in zip(first[order].tolist(), second[order].tolist(), given[order].tolist()):
        judged = contacts is not None and (known is None or (known[i] and known[j]))
        touch = str(int(contacts[i, j])) if judged else ""  # type: ignore[index]
        lines.append(f"{i + 1},{j + 1},{sequence[i]}{sequence[j]},{'' if np.isnan(score) else f'{score:.4f}'},{touch}")
    return "\n".join(lines) + "\n"


def _drawn(scores: np.ndarray, nearest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, darkness from 0 to 1) of the pairs that are worth drawing, the highest scores first."""
    first, second = np.triu_indices(len(scores), nearest)
    given = np.nan_to_num(scores[first, second], nan=-np.inf)
    order = np.argsort(-given, kind="stable")[: DRAWN * len(scores)]
    highest = given[order[0]] if len(order) else 1.0
    shade = given[order] / (highest if highest > 0 else 1.0)
    kept = (shade > LEAST) | (np.arange(len(order)) < len(scores))
    kept &= np.isfinite(given[order])
    return first[order][kept], second[order][kept], np.clip(shade[kept], 0, 1)


def _square(row: int, column: int, cell: float, opacity: float) -> str:
    """At (row, column), the row counted from above."""
    width = max(cell, 1.6)  # thinner ones would not be seen
    return (
        f'<rect x="{column * cell:.2f}" y="{row * cell:.2f}" width="{width:.2f}" height="{width:.2f}"'
        f' fill-opacity="{opacity:.2f}"/>'
    )


def _band(size: int, nearest: int, cell: float) -> str:
    far = (size - nearest) * cell
    near = nearest * cell
    path = f"M0 0L{near:.1f} 0L{SIDE} {far:.1f}L{SIDE} {SIDE}L{far:.1f} {SIDE}L0 {near:.1f}Z"
    return f'<path d="{path}" fill="var(--line)" fill-opacity="0.45"/>'


def _stripes(start: int, stop: int, cell: float) -> str:
    at, wide = start * cell, (stop - start) * cell
    fill = 'fill="var(--line)" fill-opacity="0.6"'
    return (
        f'<rect x="{at:.2f}" width="{wide:.2f}" height="{SIDE}" {fill}/>'
        f'<rect y="{at:.2f}" height="{wide:.2f}" width="{SIDE}" {fill}/>'
    )


def _runs(where: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], where.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _ticks(size: int) -> list[int]:
    """Places counted from 1 at which a number stands: about five of them."""
    step = next(step for step in (5, 10, 20, 25, 50, 100, 200, 500, 1000, size) if size / step <= 7)
    return list(range(step, size + 1, step))


def _tick(place: int, cell: float, side: int) -> str:
    at = (place - 0.5) * cell
    line = f'<path d="M{at:.1f} 0V{side}M0 {at:.1f}H{side}" stroke="var(--line)" stroke-width="0.7"/>'
    return line + _label(-8, at, f"{place}", "end") + _label(at, side + 14, f"{place}", "middle")


def _label(x: float, y: float, text: str, anchor: str, color: str = "muted", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="central"{weight}'
        f' style="fill: var(--{color})">{escape(text)}</text>'
    )
