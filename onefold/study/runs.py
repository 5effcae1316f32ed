"""A run as its folder tells it: configuration, curves, results, and the stages that it consists of."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from onefold.core.errors import UserError
from onefold.study.results import read_results

NAMES = {
    "pretrain": "Pre-training",
    "chat": "Fine-tuning for chat",
    "sft": "Fine-tuning for chat",
    "dpo": "Preferences",
}


@dataclass(frozen=True)
class Log:
    """The records of a log.jsonl by step, each step once."""

    records: list[dict[str, Any]]

    def series(self, *path: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """(x, value) of all records that have both; `path` leads into nested figures, as ("held_out", "loss")."""
        pairs = [(number(record.get(x)), number(_at(record, path))) for record in self.records]
        found = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def last(self, *path: str) -> float | None:
        values = self.series(*path)[1]
        return float(values[-1]) if len(values) else None

    @property
    def unit(self) -> str:
        """What the model read: "tokens", "images", or of word vectors "words" or "pairs"."""
        first = self.records[0] if self.records else {}
        return next((unit for unit in ("images", "words", "pairs") if unit in first), "tokens")

    def events(self) -> Iterator[tuple[int, str]]:
        """(step, what) for every step whose update was skipped and wherever the run was resumed."""
        for record in self.records:
            if record.get("skipped"):
                yield record["step"], f"update skipped: {record['skipped']}"
            if record.get("resumed"):
                yield record["step"], "resumed"

    @property
    def bits_per_nat(self) -> float | None:
        """What turns a loss in nats per token into bits per byte of this data; from the evaluations."""
        for record in reversed(self.records):
            loss, bits = (number(_at(record, ("held_out", name))) for name in ("loss", "bits_per_byte"))
            if loss and bits:
                return bits / loss
        return None


@dataclass(frozen=True)
class RunRecord:
    """One run, or a chain of them: then `stages` holds each, and this one what belongs to the whole."""

    path: Path
    title: str
    config: dict[str, Any]
    log: Log
    results: dict[str, Any]
    stages: list["RunRecord"] = field(default_factory=list)

    @property
    def parts(self) -> list["RunRecord"]:
        """The runs with curves, in order."""
        return self.stages or [self]

    @property
    def loss_unit(self) -> str:
        """What the loss is counted in, such as "nats per token"; empty where the objective is none of ours."""
        from onefold.objectives.every import AnyObjective  # imports torch
        from onefold.training.words.run import WordRun

        trained = self.config.get("objective") or self.config.get("model")  # word vectors' model says what it minimises
        kind = trained.get("kind") if isinstance(trained, Mapping) else None
        known = (*get_args(AnyObjective), *get_args(WordRun.model_fields["model"].annotation))
        return next(
            (c.loss_unit for c in known if c.model_fields["kind"].default == kind and hasattr(c, "loss_unit")), ""
        )

    @property
    def main(self) -> "RunRecord":
        """The run that the headline is about: the first one, which saw the raw text."""
        return self.parts[0]


def read_run(run: Path | str | Mapping[str, Path | str]) -> RunRecord:
    """A run's folder, or the folders of its stages by title. Raises UserError when there is nothing of a run."""
    if isinstance(run, Mapping):
        return _chain(run)
    path = Path(run)
    if not path.is_dir():
        raise UserError(f"{path} is not the folder of a run")
    results = read_results(path)
    listed = [(path / s["folder"], s.get("title") or _title(s["folder"])) for s in results.get("stages") or []]
    found = listed or [(f, _title(f.name)) for f in _stages(path)]
    stages = [_one(folder, title) for folder, title in found if folder.is_dir()]
    whole = _one(path, results.get("title") or path.resolve().name)
    if not (stages or whole.config or whole.log.records or results):
        raise UserError(f"{path} has no config.json, log.jsonl or results.json: it is not the folder of a run")
    return RunRecord(whole.path, whole.title, whole.config, whole.log, whole.results, stages)


def _chain(folders: Mapping[str, Path | str]) -> RunRecord:
    stages = [_one(Path(folder), title) for title, folder in folders.items()]
    if not stages:
        raise UserError("there is no stage to report on")
    results: dict[str, Any] = {}
    for part in [read_results(stages[0].path.parent), *(stage.results for stage in stages)]:
        results = part | results
    parent = stages[0].path.parent
    return RunRecord(parent, results.get("title") or parent.resolve().name, {}, Log([]), results, stages)


def _one(path: Path, title: str) -> RunRecord:
    return RunRecord(path, title, read_config(path), read_log(path), read_results(path))


def _stages(path: Path) -> list[Path]:
    """Sub-folders that are runs, in the order in which they began."""
    found = [f for f in path.iterdir() if (f / "log.jsonl").is_file() and (f / "config.json").is_file()]
    return sorted(found, key=lambda f: ((f / "config.json").stat().st_mtime, f.name))


def _title(name: str) -> str:
    return NAMES.get(Path(name).name, Path(name).name)


def read_config(path: Path) -> dict[str, Any]:
    """RUN/config.json, empty when there is none."""
    file = path / "config.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def read_log(path: Path) -> Log:
    """RUN/log.jsonl; of a step that was done twice the later one counts, and a line cut off by a crash is left out."""
    file, records = path / "log.jsonl", {}
    for line in file.read_text("utf-8", "replace").splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and number(record.get("step")) is not None:
            records[record["step"]] = records.get(record["step"], {}) | record
    return Log([records[step] for step in sorted(records)])


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted paths; lists of plain values stay whole."""
    if isinstance(value, Mapping) and value:
        items = ((str(key), item) for key, item in value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in flatten(item, f"{prefix}.{key}" if prefix else key).items()}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return value
    return None


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
