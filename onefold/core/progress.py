"""Telling a person how long work is going: a bar on a terminal, a line every few seconds elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

T = TypeVar("T")

QUIET_INTERVAL = 10.0  # seconds between lines where there is no terminal to draw a bar on


def say(text: str) -> None:
    """One line to the person, from the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


class Progress:
    """`with Progress("training", total=1000, unit="step") as bar: bar.update(loss=2.1)`.

    `total` None: the amount is not known beforehand. Figures given to `update` are shown beside the bar.
    """

    def __init__(self, title: str, total: float | None = None, unit: str = "", start: float = 0):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = start
        self.figures: dict[str, str] = {}
        self._bar = None

    def __enter__(self) -> Self:
        self._began = self._spoke = time.monotonic()
        self._quiet = os.environ.get("RANK", "0") != "0"
        if not self._quiet and sys.stderr.isatty():
            self._bar = self._draw()
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, figures="")
        return self

    def __exit__(self, kind, *_) -> None:
        if self._bar:
            self._bar.stop()
        elif not self._quiet and kind is None:
            self._line()

    def update(self, n: float = 1, **figures: float | str) -> None:
        self.done += n
        self.figures |= {
            name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in figures.items()
        }
        if self._bar:
            self._bar.update(self._task, completed=self.done, figures=self._shown())
        elif not self._quiet and time.monotonic() - self._spoke > QUIET_INTERVAL:
            self._spoke = time.monotonic()
            self._line()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, counting one for each."""
        for item in items:
            yield item
            self.update()

    def _shown(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.figures.items())

    def _line(self) -> None:
        seconds = time.monotonic() - self._began
        amount = (
            f"{self.done:,.0f}" + (f"/{self.total:,.0f}" if self.total else "") + (f" {self.unit}" if self.unit else "")
        )
        left = ""
        if self.total and self.first < self.done < self.total:
            left = f"  {clock(seconds / (self.done - self.first) * (self.total - self.done))} left"
        say(f"{self.title}: {amount}  {self._shown()}  {clock(seconds)}{left}")

    def _draw(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn()]
        if self.unit:
            columns.append(TextColumn(self.unit))
        columns += [
            TextColumn("[cyan]{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("·"),
            TimeRemainingColumn(),
        ]
        return Bar(*columns, console=Console(stderr=True), transient=False)


def clock(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
