"""After a training: what the model in a run's folder makes of what was held out, and the page that tells it."""

from pathlib import Path
from typing import Any

from onefold.core.progress import say
from onefold.data.images import ImageData
from onefold.infer.features import judge_features
from onefold.interop.open import open_model
from onefold.study import machine
from onefold.study.pictures import picture_results
from onefold.study.report import write_report
from onefold.study.results import write_results
from onefold.training.run import Run

ROWS = 64  # pictures at once


def review(folder: Path) -> Path:
    """Write results.json and report.html of the run in `folder`, and return the page."""
    run = Run.from_json((folder / "config.json").read_text(), str(folder / "config.json"))
    results: dict[str, Any] = {"machine": machine.facts(), "reproduce": [f"onefold train {folder / 'config.json'}"]}
    if isinstance(run.data, ImageData):
        results |= of_pictures(run, folder)
    write_results(folder, **results)
    page = write_report(folder)
    say(f"look at {page}")
    return page


def of_pictures(run: Run, folder: Path) -> dict[str, Any]:
    """What a model of pictures made of all those that were held out; how good its features are where it names none."""
    loaded = open_model(folder)
    dataset = run.data.prepare(folder / "data", loaded.processor, keep=True)
    final: dict[str, Any] = {"parameters": sum(p.numel() for p in loaded.model.parameters())}
    found: dict[str, Any] = {"data": {"name": run.data.path, **dataset.facts}}
    if dataset.size("held_out") and getattr(loaded.config, "classes", 0):
        shown = picture_results(loaded.model, dataset.evaluation("held_out", ROWS), dataset.classes)
        found["pictures"] = shown
        final |= {name: shown[name] for name in ("accuracy", "top5") if name in shown}
    elif dataset.size("held_out") and dataset.classes:
        judged = judge_features(loaded.model, dataset, ROWS)
        final |= {"accuracy of nearest neighbours": judged["neighbours"], "accuracy of a linear probe": judged["probe"]}
    return {**found, "final": final}
