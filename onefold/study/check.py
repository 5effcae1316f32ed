"""What a landmark's `check(report)` says: what must hold, what was seen, and what the paper printed.

    def check(report: Report) -> None:
        report.equal("parameters", count(recipe().model), 7_241_732_096)
        report.less("held-out loss", ours, baseline)     # numbers, or one for each seed
        report.note("bits per byte", 1.52)               # seen, not asserted
        report.published("MMLU", 60.1)                   # the paper's, with ours beside it where we have one
        report.chart("loss against compute", svg)        # a drawing of charts.py, kept as a file

Assertions say whether the implementation is right. Notes, published numbers and charts never fail.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.study.pages.words import duration

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console

Kind = Literal["equal", "close", "less", "note", "published", "chart", "error"]
PAGE = Path("docs/landmarks.md")
PICTURES = Path("pictures/landmarks")  # beside the page
CHARTS = Path("runs/check/charts")
MARKS = {True: "✓", False: "✗", None: "·"}


@dataclass(frozen=True)
class Row:
    """One line of a check. `passed` None: reported, not asserted."""

    kind: Kind
    name: str
    value: str
    expected: str
    passed: bool | None
    seconds: float
    seeds: int | None = None
    spread: float | None = None  # standard deviation over seeds, of the value


class Report:
    """Collects the rows of one landmark's check. A row's seconds are those since the row before it.

    charts: the folder where charts are kept.
    """

    def __init__(self, name: str, charts: Path = CHARTS):
        self.name = name
        self.charts = charts
        self.rows: list[Row] = []
        self._clock = time.perf_counter()

    def equal(self, name: str, value: Any, expected: Any) -> bool:
        """`value` must be exactly `expected`."""
        return self._add("equal", name, _text(value), _text(expected), bool(value == expected))

    def close(self, name: str, value: float, expected: float, tolerance: float) -> bool:
        """|value − expected| must not exceed `tolerance` (absolute). NaN is close to nothing."""
        passed = bool(abs(float(value) - float(expected)) <= tolerance)
        return self._add("close", name, _text(value), f"{_text(expected)} ± {_text(tolerance)}", passed)

    def less(
        self, name: str, value: float | Sequence[float], bound: float | Sequence[float], seeds: int | None = None
    ) -> bool:
        """`value` must be below `bound`. Of values for several seeds the mean counts, and their spread is reported."""
        values, bounds = _numbers(value), _numbers(bound)
        passed = fmean(values) < fmean(bounds)
        seeds = seeds or (max(len(values), len(bounds)) if max(len(values), len(bounds)) > 1 else None)
        below = _text(fmean(bounds)) + _plus_minus(_spread(bounds))
        return self._add("less", name, _text(fmean(values)), f"< {below}", passed, seeds, _spread(values))

    def note(self, name: str, value: Any) -> None:
        """Something seen and worth telling that no assertion rests on; a list of numbers is one for each seed."""
        self._seen("note", name, value, "")

    def published(self, name: str, paper: Any, ours: Any = None) -> None:
        """A number that the paper printed, labelled as the paper's, beside ours: one, or one for each seed."""
        self._seen("published", name, "" if ours is None else ours, f"{_text(paper)} (paper)")

    def chart(self, name: str, drawing: "Markup") -> Path:
        """A drawing of onefold.study.pages.charts, written to a file that the terminal names and the page shows."""
        from onefold.study.pages.charts import standalone

        path = self.charts / f"{_slug(self.name)}-{_slug(name)}.svg"
        atomic_write(path, standalone(drawing))
        self._add("chart", name, str(path), "", None)
        return path

    def error(self, error: BaseException) -> None:
        """The check itself broke: that is a failure."""
        self._add("error", "the check stopped", f"{type(error).__name__}: {error}", "", False)

    @property
    def passed(self) -> bool:
        return all(row.passed is not False for row in self.rows)

    @property
    def status(self) -> int:
        """The exit status: 0 when nothing that was asserted failed."""
        return 0 if self.passed else 1

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"name": self.name, "passed": self.passed, "seconds": self.seconds, "rows": rows}

    def print(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        styles = {True: "green", False: "bold red", None: "dim"}
        table = Table(title=self.name, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column, justify in (
            ("", "left"),
            ("check", "left"),
            ("value", "right"),
            ("expected", "left"),
            ("time", "right"),
        ):
            table.add_column(column, justify=justify, header_style="dim", overflow="fold")
        for row in self.rows:
            mark = Text(MARKS[row.passed], style=styles[row.passed])
            seeds = f" ({row.seeds} seeds)" if row.seeds else ""
            cells = (row.name + seeds, row.value + _plus_minus(row.spread), row.expected, _time(row.seconds))
            table.add_row(mark, *(Text(cell, style="red" if row.passed is False else "") for cell in cells))
        (console or Console()).print(table)

    def _seen(self, kind: Kind, name: str, value: Any, expected: str) -> None:
        if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(v, int | float) for v in value):
            self._add(kind, name, _text(fmean(value)), expected, None, len(value), _spread(_numbers(value)))
        else:
            self._add(kind, name, _text(value), expected, None)

    def _add(
        self,
        kind: Kind,
        name: str,
        value: str,
        expected: str,
        passed: bool | None,
        seeds: int | None = None,
        spread: float | None = None,
    ) -> bool:
        now = time.perf_counter()
        self.rows.append(Row(kind, name, value, expected, passed, now - self._clock, seeds, spread))
        self._clock = now
        return passed is not False


class Done(Protocol):
    """What training returns."""

    status: str


D = TypeVar("D", bound=Done)


def whole(result: D) -> D:
    """`result` of a training that came to its end. Raises KeyboardInterrupt where it was stopped before: what follows
    could not be compared, and the same check goes on from there."""
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result


def run_check(name: str, check: Callable[[Report], None]) -> Report:
    """Run one check to its end or its error, which becomes a failed row. Ctrl-C goes through."""
    report = Report(name)
    try:
        check(report)
    except Exception as error:
        report.error(error)
        if not isinstance(error, UserError):
            import traceback

            traceback.print_exc()
    return report


def run_checks(
    checks: Mapping[str, Callable[[Report], None]], publish: bool | Path = False, console: "Console | None" = None
) -> int:
    """Run and print all, write the page of landmarks if `publish` says so (or where), return the exit status."""
    reports = []
    for name, check in checks.items():
        reports.append(run_check(name, check))
        reports[-1].print(console)
    if publish:
        write_landmarks(publish if isinstance(publish, Path) else PAGE, reports)
    return max((report.status for report in reports), default=0)


def write_landmarks(path: Path, reports: Iterable[Report], commit: str | None = None, day: date | None = None) -> Path:
    """A page with one table for each landmark, under one line that says when and from which commit."""
    reports = list(reports)
    lines = [
        "# The landmarks, checked",
        "",
        "Written by `onefold check --all`; edits are lost at its next run.",
        f"{(day or date.today()).isoformat()}, commit {commit or _commit(path)}.",
        "✓ and ✗ are assertions: what must hold if the implementation is right. · is reported, never asserted; numbers",
        "marked (paper) are the paper's, at the paper's size. Spread is the standard deviation over seeds.",
        "Trainings that were finished before are only read again: their time is not in the times below.",
        "",
        "| landmark | asserted | failed | time |",
        "|---|--:|--:|--:|",
    ]
    for report in reports:
        asserted = [row for row in report.rows if row.passed is not None]
        failed = sum(row.passed is False for row in asserted)
        link = f"[{_cell(report.name)}](#{_anchor(report.name)})"
        lines.append(f"| {link} | {len(asserted)} | {failed} | {duration(report.seconds)} |")
    for report in reports:
        lines += ["", f"## {_cell(report.name)}", "", "| | check | value | expected | seeds | spread | time |"]
        lines.append("|---|---|--:|---|--:|--:|--:|")
        for row in (row for row in report.rows if row.kind != "chart"):
            spread = "" if row.spread is None else f"{row.spread:.2g}"
            cells = (row.name, row.value, row.expected, str(row.seeds or ""), spread, _time(row.seconds))
            lines.append(f"| {MARKS[row.passed]} | {' | '.join(_cell(cell) for cell in cells)} |")
        for row in (row for row in report.rows if row.kind == "chart"):
            picture = PICTURES / Path(row.value).name
            (path.parent / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row.value, path.parent / picture)
            lines += ["", f"![{row.name}]({picture.as_posix()})", "", f"*{row.name}*"]
    atomic_write(path, "\n".join(lines) + "\n")
    return path


def _commit(path: Path) -> str:
    """The commit of the tree that the page is in, with a mark when files differ from it."""
    folder = next(parent for parent in path.resolve().parents if parent.is_dir())
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _numbers(value: Any) -> list[float]:
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None else f" ± {spread:.2g}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else ""


def _spread(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _text(value: Any) -> str:
    """Whole numbers in full, others to five digits."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
