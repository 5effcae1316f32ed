"""A run's folder belongs to one run: recognised by its config, and to one process group at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onefold.core import dist
from onefold.core.config import Config, differences
from onefold.core.errors import UserError
from onefold.core.files import atomic_write, locked, make_folder

# What may differ between two starts of one run: where it lies, what computes it, what is watched and kept, and when it
# ends. None of it changes the weights after a given number of steps, but for rounding, and for what is drawn or
# averaged over the rows that are computed together (dropout, batch norm).
FREE = {"out"}
FREE_OF_TRAINER = {
    *("steps", "time_limit", "patience"),
    *("device", "parallel", "micro_batch", "compile", "threads"),
    *("log_every", "tensorboard", "split", "metric", "evaluate_every", "evaluate_batches"),
    *("checkpoint_every", "keep", "history"),
}
FREE_OF_OPTIMIZER = {"offload"}
PLACES = {"path", "validation"}  # in the data's settings: the data's content is compared instead


def identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run as plain values, what makes it this run and no other."""
    kept = {name: value for name, value in run.items() if name not in FREE}
    kept["trainer"] = {name: value for name, value in run["trainer"].items() if name not in FREE_OF_TRAINER}
    if "optimizer" in run:
        kept["optimizer"] = {name: value for name, value in run["optimizer"].items() if name not in FREE_OF_OPTIMIZER}
    return kept | {"data": _without_places(run["data"])}


@contextmanager
def claimed(out: Path, run: Config) -> Iterator[dict[str, Any] | None]:
    """Take the folder `out` for `run`, and yield the config last started in it, as plain values; None in a new one.

    Errors: UserError when another run lies in it, or is training in it now. A run that has saved nothing yet may be
    replaced: somebody is still mending its settings.
    """
    with _locked(out):
        before, saved = _resolved(_read(out / "config.json"), type(run)), any((out / "checkpoints").glob("[0-9]*"))
        if saved and before is None:
            raise UserError(f"{out} has checkpoints but no config.json; restore that, or give another out=")
        changes = differences(identity(before), identity(run.to_dict())) if before else {}
        if saved and changes:
            told = ", ".join(f"{name} ({old!r} there, {new!r} here)" for name, (old, new) in list(changes.items())[:4])
            raise UserError(f"{out} holds another run; it differs in {told}. Give another out=, or remove that one")
        dist.barrier()  # all have read before one writes
        if dist.is_main():
            if changes:
                (out / "run.json").unlink(missing_ok=True)
            atomic_write(out / "config.json", run.to_json() + "\n")
        yield before


def read_facts(out: Path) -> dict[str, Any]:
    """What earlier starts of the run in `out` have measured."""
    facts = _read(out / "run.json") or {}
    if "flops_per_token" in facts:  # its name until runs read other things than tokens
        facts["flops"] = facts.pop("flops_per_token")
    return facts


def write_facts(out: Path, facts: Mapping[str, Any]) -> None:
    if dist.is_main():
        atomic_write(out / "run.json", json.dumps(facts, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or give another out=") from None


def _resolved(before: dict[str, Any] | None, root: type[Config]) -> dict[str, Any] | None:
    """With settings that the file does not know, as it was written before they came up: they had their defaults."""
    try:
        return before and root.from_dict(before).to_dict()
    except UserError:
        return before  # compared as it is


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_places(inner) for name, inner in value.items() if name not in PLACES}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    if not dist.is_main():
        yield
        return
    make_folder(out)
    with locked(out / ".lock", f"another process is training in {out} now; wait for it, or give another out="):
        yield
