"""Which classes a model takes for which: the matrix, its drawing, and the pairs that are confused most."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from onefold.infer.classify import Predictions
from onefold.study.pages.curves import Chart

DRAWN = 40  # classes at most; of more, those with the most mistakes
NUMBERED = 12  # classes up to which every square has its number
CELL, EDGE = 26, 5.6  # of a square, and of a letter at its side, in pixels
LONGEST = 18  # letters of a name that are shown


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Int64[classes, classes]: how many pictures of class i (row) were taken for class j (column)."""
    classes = predictions.probabilities.shape[1]
    places = predictions.truth.numpy() * classes + predictions.guesses.numpy()
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def counts(matrix: np.ndarray) -> list[list[int]]:
    """[true class, said class, how often] wherever it ever happened: a large matrix is mostly zeros."""
    return [[int(i), int(j), int(matrix[i, j])] for i, j in np.argwhere(matrix)]


def from_counts(triples: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """The matrix that `counts` was taken of."""
    matrix = np.zeros((classes, classes), np.int64)
    for i, j, count in triples:
        matrix[i, j] = count
    return matrix


def recall(matrix: np.ndarray) -> np.ndarray:
    """Float[classes]: which share of a class's pictures was named rightly; NaN for a class without pictures."""
    with np.errstate(invalid="ignore"):
        return matrix.diagonal() / matrix.sum(1)


def precision(matrix: np.ndarray) -> np.ndarray:
    """Float[classes]: which share of what was given a class's name is of that class; NaN where nothing was."""
    return recall(matrix.T)


def confused(matrix: np.ndarray, most: int = 10) -> list[tuple[int, int, int]]:
    """(true class, class it was taken for, how often) of the most frequent mistakes, the most frequent first."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    return [(int(i), int(j), int(wrong[i, j])) for i, j in zip(*np.unravel_index(order, wrong.shape)) if wrong[i, j]]


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> Chart | None:
    """The matrix as a drawing: a square is the darker, the larger the share of its row's class. None without pictures.

    Green is right, orange is wrong.
    """
    if not matrix.sum():
        return None
    shown = np.arange(len(matrix))
    if len(matrix) > DRAWN:
        wrong = matrix - np.diag(matrix.diagonal())
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:DRAWN])
    labels = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in (names[i] for i in shown)]
    left = int(EDGE * max(map(len, labels))) + 34
    rows = matrix.sum(1)
    parts = []
    for y, i in enumerate(shown):
        parts.append(_text(left - 8, (y + 0.5) * CELL, labels[y], "end"))
        for x, j in enumerate(shown):
            if count := int(matrix[i, j]):
                parts.append(_square(left + x * CELL, y * CELL, count / rows[i], i == j, count, len(shown) <= NUMBERED))
                title = f"{names[i]} taken for {names[j]}: {count:,} of {rows[i]:,}"
                parts[-1] = Markup("<g><title>{}</title>{}</g>").format(title, parts[-1])
    side = len(shown) * CELL
    for x, label in enumerate(labels):
        parts.append(_text(left + (x + 0.5) * CELL, side + 8, label, "end", turned=True))
    frame = f'<rect x="{left}" width="{side}" height="{side}" fill="none" stroke="var(--line)"/>'
    size = left + side + 2, side + left
    svg = (
        f'<svg class="chart confusion" role="img" aria-label="Confusion matrix" viewBox="-2 -2 {size[0] + 2} {size[1]}"'
        f' style="max-width: {size[0]}px" font-size="11">{frame}{"".join(parts)}</svg>'
    )
    note = "rows: what it is; columns: what the model says"
    if len(shown) < len(matrix):
        note += f"; the {DRAWN} classes with the most mistakes of {len(matrix):,}"
    return Chart(Markup(svg), title="Confusion", note=note)


def confusion_table(matrix: np.ndarray, names: Sequence[str], most: int = 10) -> Markup:
    """The most frequent mistakes as a table; empty where there are none."""
    pairs = confused(matrix, most)
    if not pairs:
        return Markup("")
    row = Markup('<tr><th scope="row">{}</th><td>{}</td><td class="n">{:,}</td><td class="n">{:.0%}</td></tr>')
    body = Markup("").join(row.format(names[i], names[j], count, count / matrix[i].sum()) for i, j, count in pairs)
    head = (
        '<tr><th scope="col">Is</th><th scope="col">Taken for</th><th scope="col" class="n">Times</th>'
        '<th scope="col" class="n">Of the class</th></tr>'
    )
    return Markup('<table class="plain"><thead>{}</thead><tbody>{}</tbody></table>').format(Markup(head), body)


def _square(x: float, y: float, share: float, right: bool, count: int, numbered: bool) -> Markup:
    color = "var(--accent)" if right else "var(--series-2)"
    opacity = 0.08 + 0.92 * share
    square = Markup(
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{color}" fill-opacity="{opacity:.2f}"/>'
    )
    if not numbered:
        return square
    ink = "var(--surface)" if share > 0.5 else "var(--ink)"
    return square + _text(x + CELL / 2, y + CELL / 2, f"{count}", "middle", style=f"fill: {ink}; stroke: none")


def _text(
    x: float, y: float, text: str, anchor: str, turned: bool = False, style: str = "fill: var(--muted)"
) -> Markup:
    turn = f' transform="rotate(-45 {x:g} {y:g})"' if turned else ""
    return Markup(
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" dominant-baseline="central" style="{style}"{turn}>'
        f"{escape(text)}</text>"
    )
