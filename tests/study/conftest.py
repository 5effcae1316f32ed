"""Folders of runs that never ran, for the readers of such folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from onefold.study.results import write_results

CONFIG: dict[str, Any] = {
    "data": {"kind": "text", "context": 256, "sources": [{"path": "stdlib", "weight": 1.0}]},
    "model": {"width": 192, "depth": 6, "vocab": 4096, "block": {"mixer": {"kind": "attention", "heads": 6}}},
    "objective": {"kind": "next_token"},
    "optimizer": {"kind": "muon", "lr": 0.02},
    "trainer": {"steps": 400, "batch": 32, "schedule": {"kind": "wsd"}},
    "seed": 0,
    "out": "runs/some",
}
BASELINES = [
    {"name": name, "bits_per_byte": bits, "seconds": 1.0, "note": f"about {name}"}
    for name, bits in (("bigram", 3.49), ("5-gram", 1.756), ("xz", 1.674), ("primed xz", 1.266))
]


def records(steps: int = 400, seconds: float = 300, worse: float = 1.0, noise: float = 0.05) -> list[dict[str, Any]]:
    """What a trainer would have logged: a power law that cools down, one skipped step, twenty evaluations."""
    random = np.random.default_rng(0)
    found = []
    for step in range(1, steps + 1):
        bits = worse * (1.0 + 2.2 * (step / 20 + 1) ** -0.5)
        record = {
            "step": step,
            "loss": bits / 0.44 + random.normal(0, noise),
            "lr": 0.02 * min(1, (steps - step + 1) / (0.2 * steps)),
            "grad_norm": float(random.uniform(0.3, 0.9)),
            "tokens": step * 8192,
            "seconds": seconds * step / steps,
            "tokens_per_second": 49_000.0,
            "mfu": 0.41,
        }
        if step == 123:
            record |= {"skipped": "a spike: loss 9.1, lately 4.0", "grad_norm": None}
        if step % max(1, steps // 20) == 0:
            record["held_out"] = {"loss": bits / 0.44, "bits_per_byte": bits}
        found.append(record)
    return found


def lay_run(folder: Path, config: dict[str, Any] | None = None, log: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    lines = [json.dumps(record) for record in (records() if log is None else log)]
    (folder / "log.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, config=…, log=…)`: a run's folder."""
    return lambda name="some", **parts: lay_run(tmp_path / name, **parts)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their drawings, which take most of the time."""
    monkeypatch.setattr("onefold.study.pages.curves.draw", lambda *_, **__: Markup('<svg class="chart"></svg>'))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A pre-training and a fine-tuning with everything that a report can show."""
    return lay_chain(tmp_path / "quickstart")


def lay_chain(out: Path) -> Path:
    lay_run(out / "pretrain")
    lay_run(out / "chat", CONFIG | {"data": {"kind": "chat"}}, records(60, 40, worse=0.8))
    write_results(
        out,
        title="quickstart",
        final={"bits_per_byte": 1.487, "parameters": 2_134_272, "peak_memory": 1.31e9},
        baselines=BASELINES,
        estimate={
            "target": 1.266,
            "verdict": "forecast",
            "text": "primed xz should fall after about 24 minutes.",
            "minutes": 24.0,
            "path": [(5, 1.47, 1.48, 1.49), (20, 1.27, 1.29, 1.31), (50, 1.1, 1.15, 1.2)],
        },
        samples=[
            {"title": "Code", "prompt": "def f(x):", "text": "\n    return x\n", "language": "python"},
            {
                "messages": [
                    {"role": "user", "content": "How?"},
                    {"role": "assistant", "content": "```python\nx = 1\n```"},
                ]
            },
        ],
        data={
            "name": "stdlib",
            "hash": "9f1c37a20e6dd8b0",
            "train": {"documents": 697, "bytes": 11_665_877, "tokens": 3_567_000},
            "held_out": {"documents": 37, "bytes": 452_764, "tokens": 139_000},
        },
        machine={"python": "3.11.7", "torch": "2.13.0", "cores": 2, "memory": 8e9},
        stages=[
            {"name": "pretrain", "folder": "pretrain", "title": "Pre-training"},
            {"name": "chat", "folder": "chat", "title": "Fine-tuning"},
        ],
        reproduce=["onefold quickstart minutes=5"],
        notes=["A note."],
    )
    return out
