"""Runs side by side: what was set differently, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onefold.core.errors import UserError
from onefold.study.pages import words
from onefold.study.runs import RunRecord, flatten, read_run

if TYPE_CHECKING:
    from rich.console import Console

ABSENT = "–"
MOST = 6  # as many as there are colours
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """One setting or figure of every run; `best` says which run's is the best, where that can be said."""

    name: str
    values: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `metric` is the key of the held-out figure that all runs have, or None."""

    names: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    results: tuple[Row, ...]
    differences: tuple[Row, ...]
    metric: str | None

    def print(self, console: "Console | None" = None) -> None:
        """Two tables and a line of blocks for each curve."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        out = console or Console()
        for title, rows in (("Results", self.results), ("Different settings", self.differences)):
            if not rows:
                continue
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
            table.add_column("")
            for name in self.names:
                table.add_column(Text(name), justify="right", overflow="fold")
            for row in rows:
                cells = [Text(v, style="bold green" if i == row.best else "") for i, v in enumerate(row.values)]
                table.add_row(Text(row.name), *cells)
            out.print(table)
            out.print()
        if not self.differences:
            out.print("All settings are the same.\n")
        for name, line in self.sparks():
            out.print(Text(f"{line}  {name}"))

    def sparks(self, width: int = 48) -> list[tuple[str, str]]:
        """(name, blocks) of each held-out curve, all on the same axes of time and of logarithmic loss."""
        curves = [_curve(run, self.metric) for run in self.runs] if self.metric else []
        curves = [curve for curve in curves if len(curve[0])]
        if len(curves) < len(self.runs):
            return []
        end = max(float(x[-1]) for x, _ in curves)
        low, high = (float(np.log(f(np.concatenate([y for _, y in curves])))) for f in (np.min, np.max))
        lines = []
        for x, y in curves:
            at = np.linspace(0, end, width)
            heights = (np.log(np.interp(at, x, y)) - low) / ((high - low) or 1)
            marks = [BLOCKS[min(7, int(h * 8))] if x[0] <= t <= x[-1] else " " for t, h in zip(at, heights)]
            lines.append("".join(marks))
        return list(zip(self.names, lines))

    def write(self, path: Path) -> Path:
        """A page with the tables and the curves over each other."""
        from onefold.study.pages.curves import overlay
        from onefold.study.pages.page import write_page

        charts = overlay(self.names, [run.main.log for run in self.runs], self.metric)
        view = {"names": self.names, "results": self.results, "differences": self.differences, "charts": charts}
        return write_page("compare.html.jinja", Path(path), **view)


def compare(*runs: Path | str, html: Path | str | None = None, quiet: bool = False) -> Comparison:
    """Compare the runs in these folders: print tables, and write a page to `html` if that is given.

    Of a chain of stages the first one's curve is compared. Raises UserError when a folder is no run, when there are
    fewer than two, or more than the page has colours for.
    """
    if not 2 <= len(runs) <= MOST:
        raise UserError(f"give 2 to {MOST} runs to compare, not {len(runs)}")
    records = tuple(read_run(run) for run in runs)
    metric = _metric(records)
    found = Comparison(_names(records), records, tuple(_results(records, metric)), tuple(_differences(records)), metric)
    if not quiet:
        found.print()
    if html is not None:
        path = found.write(Path(html))
        if not quiet:
            print(f"wrote {path}")
    return found


def _names(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """The ends of the paths, as long as it takes to tell them apart."""
    paths = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{name} ({i})" for i, name in enumerate(names, 1))


def _metric(runs: Sequence[RunRecord]) -> str | None:
    for name in ("bits_per_byte", "loss"):
        if all(len(_curve(run, name)[0]) for run in runs):
            return name
    return None


def _curve(run: RunRecord, metric: str) -> tuple[np.ndarray, np.ndarray]:
    return run.main.log.series("held_out", metric, x="seconds")


def _results(runs: Sequence[RunRecord], metric: str | None) -> list[Row]:
    """Figures that at least one run has; the better one is marked where better is clear."""
    logs = [run.main.log for run in runs]
    final = [run.results.get("final") or {} for run in runs]
    rows = []
    for name, path, better in (
        ("held-out bits per byte", ("held_out", "bits_per_byte"), min),
        ("held-out accuracy", ("held_out", "accuracy"), max),
        ("held-out loss", ("held_out", "loss"), min),
        ("training loss", ("loss",), None),
        ("parameters", ("parameters",), None),
        ("steps", ("step",), None),
        ("tokens", ("tokens",), None),
        ("images", ("images",), None),
        ("training time", ("seconds",), None),
        ("tokens per second", ("tokens_per_second",), max),
        ("images per second", ("images_per_second",), max),
        ("MFU", ("mfu",), max),
        ("skipped steps", ("skipped",), None),
    ):
        values = [f.get(path[-1]) if path == ("parameters",) else _figure(log, path) for log, f in zip(logs, final)]
        if any(value is not None for value in values) and not (name == "skipped steps" and not any(values)):
            rows.append(_row(name, values, better))
    if metric and (row := _time_to_common(runs, metric)):
        rows.insert(2 if metric == "bits_per_byte" else 1, row)
    return rows


def _figure(log: Any, path: tuple[str, ...]) -> float | None:
    if path == ("skipped",):
        return sum("skipped" in what for _, what in log.events())
    if path in (("tokens_per_second",), ("images_per_second",), ("mfu",)):  # one step says little about speed
        values = log.series(*path)[1]
        return float(np.median(values)) if len(values) else None
    if path == ("loss",):
        values = log.series(*path)[1][-20:]
        return float(np.mean(values)) if len(values) else None
    return log.last(*path)


def _time_to_common(runs: Sequence[RunRecord], metric: str) -> Row | None:
    """Seconds until each run was as good as the worst of them in the end: what a faster run saves."""
    curves = [_curve(run, metric) for run in runs]
    level = max(float(y.min()) for _, y in curves)
    times = [float(x[np.flatnonzero(y <= level)[0]]) for x, y in curves]
    if len(set(times)) == 1:
        return None
    unit = "bits per byte" if metric == "bits_per_byte" else "held-out loss"
    row = _row("training time", times, min)
    return Row(f"time to {level:.3f} {unit}", row.values, row.best)


def _row(name: str, values: Sequence[Any], better: Any) -> Row:
    known = [value for value in values if value is not None]
    best = None
    if better and len(set(known)) > 1:
        best = values.index(better(known))
    return Row(name, tuple(ABSENT if v is None else _text(name, v) for v in values), best)


def _text(name: str, value: float) -> str:
    if name.endswith("per second") or name in ("parameters", "tokens", "images", "steps", "skipped steps"):
        return words.count(value)
    if name == "training time":
        return words.duration(value)
    return f"{value:.1%}" if name == "MFU" else f"{value:.4f}"


def _differences(runs: Sequence[RunRecord]) -> list[Row]:
    """Settings that are not the same everywhere, by dotted path; where a run lies is no setting."""
    settings = [_settings(run) for run in runs]
    paths = dict.fromkeys(path for each in settings for path in each)
    rows = []
    for path in paths:
        values = [each.get(path, ABSENT) for each in settings]
        if path.split(".")[-1] != "out" and any(value != values[0] for value in values):
            rows.append(Row(path, tuple(value if value is ABSENT else words.show("", value) for value in values)))
    return rows


def _settings(run: RunRecord) -> dict[str, Any]:
    if run.stages:
        return flatten({stage.path.name: stage.config for stage in run.stages})
    return flatten(run.config) if run.config else {}
