"""report.html: what was trained on what, how good it became, and how it went. One file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onefold.infer.evaluation.scores import Figure
from onefold.study.pages import words
from onefold.study.pages.charts import Level
from onefold.study.pages.curves import inside, learning, outlook
from onefold.study.pages.experts import expert_charts
from onefold.study.pages.gain import gain_section
from onefold.study.pages.page import write_page
from onefold.study.pages.pictures import picture_sections
from onefold.study.pages.samples import sample_html
from onefold.study.pages.texts import text_sections
from onefold.study.pages.translations import translation_sections
from onefold.study.runs import RunRecord, flatten, number, read_run

EVENTS = 12  # shown at most
MODEL = ("width", "depth", "heads", "kv_heads", "head_width", "window", "context", "vocab", "tied", "residual")
NAMES = {"stdlib": "Python's standard library", "synthetic": "synthetic pairs"}
PARTIAL = (
    "While training, the loss is measured on a part of the held-out files; the figure at the top is for all of them."
)
FINE = (
    "Fitted to the held-out curve before its learning rate fell: a power law with a floor, and simpler shapes where "
    "they describe it as well, with resampled residuals. An extrapolation, not a measurement."
)


def write_report(run: Path | str | Mapping[str, Path | str], out: Path | str | None = None) -> Path:
    """Write report.html into a run's folder (or to `out`) from its config.json, log.jsonl and results.json.

    `run` is a folder, whose sub-folders may be the stages of a chain, or a mapping of titles to the stages' folders.
    Whatever is missing is left out. Raises UserError when there is nothing to report on.
    """
    record = read_run(run)
    return write_page("report.html.jinja", Path(out) if out else record.path / "report.html", **_view(record))


def _view(record: RunRecord) -> dict[str, Any]:
    results, final = record.results, _final(record)
    baselines = [b for b in results.get("baselines") or [] if number(b.get("bits_per_byte"))]
    events = [(_where(record, part, step), what) for part in record.parts for step, what in part.log.events()]
    samples = results.get("samples") or []
    return {
        "title": record.title,
        "lead": _lead(results, final, baselines, record.main.log.unit),
        "tiles": _tiles(final),
        "bars": _bars(baselines, number(final.get("bits_per_byte"))),
        "model_bits": number(final.get("bits_per_byte")),
        "unseen": _unseen(results.get("data") or {}),
        "estimate": _estimate(record, baselines),
        "stages": [_stage(part, record, baselines) for part in record.parts],
        "samples": [
            {"title": s.get("title"), "settings": _settings(s.get("settings")), "html": sample_html(s)} for s in samples
        ],
        "pictures": picture_sections(results["pictures"]) if results.get("pictures") else "",
        "texts": text_sections(results["texts"]) if results.get("texts") else "",
        "translations": translation_sections(results["translations"]) if results.get("translations") else "",
        "preferences": gain_section(results["preferences"]) if results.get("preferences") else "",
        "prompted": any(s.get("prompt") for s in samples),
        "writes": any("prompt" in s or "messages" in s for s in samples),
        "events": events[:EVENTS],
        "more_events": max(0, len(events) - EVENTS),
        "model_facts": _model(record, final),
        "configs": [
            {"title": part.title, "rows": [(k, words.show("", v)) for k, v in flatten(part.config).items()]}
            for part in record.parts
            if part.config
        ],
        "data_facts": _facts({k: v for k, v in (results.get("data") or {}).items() if not _is_split(k, v)}),
        "splits": _splits(results.get("data") or {}),
        "machine": _facts(results.get("machine") or {}),
        "reproduce": results.get("reproduce") or [],
        "notes": results.get("notes") or [],
    }


def _final(record: RunRecord) -> dict[str, Any]:
    """The final figures; what nobody wrote down is read from the log."""
    log = record.main.log
    rates = (f"{log.unit}_per_second", "mfu")
    logged = {
        "bits_per_byte": log.last("held_out", "bits_per_byte"),
        "accuracy": log.last("held_out", "accuracy"),
        "loss": log.last("held_out", "loss"),
        log.unit: log.last(log.unit),
        "seconds": log.last("seconds"),
        "steps": log.last("step"),
        **{name: float(np.median(v)) for name in rates if len(v := log.series(name)[1])},
    }
    return {k: v for k, v in logged.items() if v is not None} | dict(record.results.get("final") or {})


def _lead(results: Mapping[str, Any], final: Mapping[str, Any], baselines: list[Mapping[str, Any]], unit: str) -> str:
    """Who read what, where and for how long, and what it learned: as much of that as is known."""
    data, machine = ((results.get(k) or {}) for k in ("data", "machine"))
    parameters, read, seconds, bits, accuracy = (
        number(final.get(k)) for k in ("parameters", unit, "seconds", "bits_per_byte", "accuracy")
    )
    if not (read or data.get("name") or bits):
        return ""
    place = machine.get("gpu") or (f"{machine['cores']} CPU cores" if number(machine.get("cores")) else "")
    start = f"In {words.duration(seconds)}{f' on {place}' if place else ''}, a" if seconds else "A"
    who = f"{start} model of {words.large(parameters)} parameters" if parameters else f"{start} model"
    seen = f"read {words.large(read)} {unit} of" if read else "was trained on"
    name = str(data.get("name") or "text")
    text = f"{who} {seen} {NAMES.get(name, name)}."
    if accuracy and unit == "images":
        text += f" It names {accuracy:.1%} of the pictures that it has never seen."
    if figures := (results.get("texts") or {}).get("figures"):
        best = Figure(**figures[0])
        text += f" On {results['texts']['rows']:,} texts that it has never seen: {best}."
    if bits:
        text += f" It predicts files that it has never seen with {bits:.2f} bits per byte"
        beaten = sorted((b["bits_per_byte"], b["name"]) for b in baselines if b["bits_per_byte"] > bits)
        text += f", {1 - bits / beaten[0][0]:.0%} below {beaten[0][1]}." if beaten else "."
    return text


def _tiles(final: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, unit) of the figures that people ask for first."""
    found = []
    for name, key, show in (
        ("held-out bits per byte", "bits_per_byte", lambda v: (f"{v:.3f}", "")),
        ("held-out accuracy", "accuracy", lambda v: (f"{v:.1%}", "")),
        ("held-out BLEU", "bleu", lambda v: (f"{v:.1f}", "")),
        ("parameters", "parameters", lambda v: (words.short(v), "")),
        ("tokens read", "tokens", lambda v: (words.short(v), "")),
        ("images read", "images", lambda v: (words.short(v), "")),
        ("words read", "words", lambda v: (words.short(v), "")),
        ("training time", "seconds", lambda v: tuple(words.duration(v).split(" "))),
        ("tokens per second", "tokens_per_second", lambda v: (words.short(v), "")),
        ("images per second", "images_per_second", lambda v: (words.short(v), "")),
        ("words per second", "words_per_second", lambda v: (words.short(v), "")),
        ("model FLOPs utilisation", "mfu", lambda v: (f"{v:.0%}", "")),
        ("most memory", "peak_memory", lambda v: tuple(words.size(v).split(" "))),
    ):
        if (value := number(final.get(key))) is not None:
            found.append((name, *show(value)))
    return found[:6]


def _bars(baselines: list[Mapping[str, Any]], ours: float | None) -> list[dict[str, Any]]:
    bars = [
        {"name": b["name"], "note": b.get("note"), "bits": float(b["bits_per_byte"]), "ours": False} for b in baselines
    ]
    if ours and bars:
        bars.append({"name": "This model", "note": None, "bits": ours, "ours": True})
    widest = max((bar["bits"] for bar in bars), default=1)
    for bar in bars:
        bar["width"] = 100 * bar["bits"] / widest
        share = ours / bar["bits"] - 1 if ours else 0
        bar["against"] = "" if bar["ours"] else f"{abs(share):.0%} {'less' if share < 0 else 'more'}"
    return sorted(bars, key=lambda bar: -bar["bits"])


def _unseen(data: Mapping[str, Any]) -> str:
    split = dict(_split_items(data)).get("held_out") or {}
    if not number(split.get("bytes")):
        return "the held-out files"
    files = f"{words.count(split['documents'])} held-out files" if number(split.get("documents")) else "held-out files"
    return f"the {files} ({words.count(split['bytes'])} bytes)"


def _estimate(record: RunRecord, baselines: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    estimate = record.results.get("estimate")
    if not estimate or not estimate.get("text"):
        return None
    target = number(estimate.get("target"))
    name = next((b["name"] for b in baselines if abs(b["bits_per_byte"] - (target or 0)) < 1e-3), "the target")
    reached, final = estimate.get("verdict") == "reached", number(_final(record).get("bits_per_byte"))
    chart = None if reached else outlook(record.main.log, estimate, name, final)
    return {
        "heading": f"When {name} fell" if reached else f"How much longer until {name} falls?",
        "text": estimate["text"][:1].upper() + estimate["text"][1:],
        "chart": chart,
        "fine": FINE if chart else "",
    }


def _stage(part: RunRecord, record: RunRecord, baselines: list[Mapping[str, Any]]) -> dict[str, Any]:
    main = part is record.main
    levels = [Level(b["name"], float(b["bits_per_byte"])) for b in baselines] if main else []
    seen, final = part.log.last("held_out", "bits_per_byte"), number(_final(record).get("bits_per_byte"))
    return {
        "title": part.title,
        "heading": "How it learned" if len(record.parts) == 1 else part.title,
        "sentence": _course(part),
        "curves": learning(part.log, part.loss_unit, levels),
        "fine": PARTIAL if main and seen and final and abs(seen - final) > 0.002 else "",
        "experts": expert_charts(part.log),
        "panels": inside(part.log),
    }


def _course(part: RunRecord) -> str:
    log = part.log
    seconds, steps, units = log.last("seconds"), log.last("step"), log.last(log.unit)
    if not (seconds and steps):
        return ""
    read = f" and {words.large(units)} {log.unit}" if units else ""
    return f"{words.count(steps)} steps{read} in {words.duration(seconds)}."


def _model(record: RunRecord, final: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that tell one decoder from another, wherever in the config they stand."""
    settings = flatten({k: record.main.config[k] for k in ("model", "data") if k in record.main.config})
    rows = [("Parameters", words.count(final["parameters"]))] if number(final.get("parameters")) else []
    for name in MODEL:
        paths = sorted((p for p in settings if p.split(".")[-1] == name), key=lambda p: (p.count("."), p))
        if paths and settings[paths[0]] is not None:
            value = settings[paths[0]]
            plain = isinstance(value, int) and not isinstance(value, bool)
            rows.append((words.label(name), words.count(value) if plain else words.show(name, value)))
    config = flatten(record.main.config)
    for name, path in (("Optimizer", "optimizer.kind"), ("Schedule", "trainer.schedule.kind"), ("Seed", "seed")):
        if config.get(path) is not None:
            rows.append((name, str(config[path])))
    return rows


def _is_split(name: str, value: Any) -> bool:
    return name == "splits" or (isinstance(value, Mapping) and any(number(v) is not None for v in value.values()))


def _split_items(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    nested = data.get("splits")
    items = (nested if isinstance(nested, Mapping) else data).items()
    return [(name, value) for name, value in items if isinstance(value, Mapping) and name != "splits"]


def _splits(data: Mapping[str, Any]) -> dict[str, Any] | None:
    items = [(name, split) for name, split in _split_items(data) if _is_split(name, split)]
    columns = list(dict.fromkeys(key for _, split in items for key in split))
    if not columns:
        return None
    rows = [
        {"name": words.label(name), "cells": [words.show(c, split[c]) if c in split else "" for c in columns]}
        for name, split in items
    ]
    return {"columns": [words.label(column) for column in columns], "rows": rows}


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(words.label(k), words.show(k, v)) for k, v in values.items() if v is not None and v not in ("", [])]


def _settings(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return str(settings) if settings else ""
    return ", ".join(f"{words.label(k).lower()} {words.show('', v)}" for k, v in settings.items())


def _where(record: RunRecord, part: RunRecord, step: int) -> str:
    return f"Step {words.count(step)}" + (f", {part.title.lower()}" if record.stages else "")
