"""What a run tells while it goes: log.jsonl, one JSON object a step, and TensorBoard where it is asked for."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, Self

from onefold.core import dist
from onefold.core.errors import missing_extra
from onefold.core.files import atomic_write, disk_error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; a last line that a crash cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class Log:
    """Appends records to RUN/log.jsonl, from the main process only.

    Opened at step s it first drops records of later steps, so that a resumed run's log is that of one never stopped,
    but for times and for `resumed`, s, in the record that comes next.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool = False):
        self.path, self.file, self.writer = out / "log.jsonl", None, None
        self.step, self.tensorboard = step, tensorboard
        self.mark = {"resumed": step} if step else {}

    def __enter__(self) -> Self:
        if not dist.is_main():
            return self
        kept = [r for r in read_log(self.path) if r["step"] <= self.step]
        atomic_write(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = self.path.open("a")
        if self.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_extra("tensorboard", "tensorboard", "trainer.tensorboard") from None
            self.writer = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(self, *_) -> None:
        for sink in (self.file, self.writer):
            if sink is not None:
                sink.close()

    def write(self, record: dict[str, Any]) -> None:
        """One step's figures; nested ones (those of an evaluation) appear in TensorBoard as group/name."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(_finite(record | self.mark), allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise disk_error(self.path, error) from error
        self.mark = {}
        if self.writer is not None:
            for name, value in _flat(record):
                self.writer.add_scalar(name, value, record["step"])


class Pace:
    """Units (tokens, images) a second, the share of the hardware's speed that they amount to (MFU), and the share of
    the time that passed waiting for data, since the last record.

    `mfu`: units a second → share, or None where it is not known.
    """

    def __init__(self, read: int, unit: str, mfu: Callable[[float], float | None]):
        self.unit, self.mfu = unit, mfu
        self.before = self.read = read
        self.seconds = self.waited = self.rate = 0.0

    def add(self, read: int, seconds: float, waited: float) -> None:
        """A step took `seconds`, of which it `waited` for data, and so many units are `read` by now."""
        self.read = read
        self.seconds += seconds
        self.waited += waited
        self.rate = (read - self.before) / self.seconds

    def figures(self) -> dict[str, float | None]:
        """For the log; what follows is measured anew."""
        waiting = self.waited / self.seconds if self.seconds else 0.0
        self.before, self.seconds, self.waited = self.read, 0.0, 0.0
        return {f"{self.unit}_per_second": self.rate, "mfu": self.mfu(self.rate), "waiting": round(waiting, 4)}

    def shown(self) -> dict[str, str]:
        """For the progress bar."""
        mfu = self.mfu(self.rate)
        return {f"{self.unit}/s": f"{self.rate:,.0f}"} | ({"MFU": f"{mfu:.0%}"} if mfu else {})


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _flat(record: dict[str, Any], prefix: str = ""):
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, value
