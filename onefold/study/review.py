"""After a training: what the model in a run's folder makes of what was held out, and the page that tells it."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from onefold.core import dist
from onefold.core.device import pick
from onefold.core.progress import say
from onefold.data.pictures.images import ImageData, ImageDataset
from onefold.data.sequences.sequences import SequenceData
from onefold.data.text.labelled.text import LabelledTextData, LabelledTextDataset
from onefold.data.text.pairs.text_pairs import TextPairsData, TextPairsDataset
from onefold.infer.evaluation.features import judge_features
from onefold.infer.model import load
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.open import open_model
from onefold.study import machine
from onefold.study.pages.experts import advice
from onefold.study.pages.pictures import picture_results
from onefold.study.pages.report import write_report
from onefold.study.pages.texts import text_results
from onefold.study.pages.translations import translation_results
from onefold.study.results import read_results, write_results
from onefold.study.runs import read_log
from onefold.training.run import Result, first_processor
from onefold.training.words.run import WordResult

ROWS = 64  # pictures at once
PAIRS = 300  # of texts that are translated for a report, at most
FREQUENT, ASKED = 1000, 12  # of the most frequent words, so many are shown with their neighbours


def review(result: Result) -> Path:
    """Write results.json and report.html of a finished run, and return the page. For the main process alone."""
    run, folder = result.run, result.out
    found: dict[str, Any] = {"machine": machine.facts(), "reproduce": [f"onefold train {folder / 'config.json'}"]}
    if isinstance(run.data, ImageData) and (dataset := _dataset(result)):
        found |= of_pictures(dataset, folder, pick(run.trainer.device)) | {"title": folder.name}
        found["data"] = {"name": run.data.path, **dataset.facts}
    if isinstance(run.data, TextPairsData) and (pairs := _dataset(result)):
        found |= of_pairs(pairs, folder, pick(run.trainer.device)) | {"title": folder.name}
        found["data"] = {"name": " and ".join(run.data.path), **pairs.facts}
    if isinstance(run.data, LabelledTextData | SequenceData) and (rows := _dataset(result)):
        found |= of_rows(rows, folder, pick(run.trainer.device)) | {"title": folder.name}
        name = run.data.path if isinstance(run.data, LabelledTextData) else run.data.source.kind
        found["data"] = {"name": name, **{k: v for k, v in rows.facts.items() if k != "card"}}
    if notes := advice(read_log(folder)):
        found["notes"] = notes
        for note in notes:
            say(note)
    write_results(folder, **found)
    page = write_report(folder)
    say(f"look at {page}")
    return page


def review_words(result: WordResult) -> Path:
    """The same of a training of word vectors: which words came to lie beside which."""
    run, folder, vectors = result.run, result.out, result.vectors
    frequent = [word for word in vectors.words[:FREQUENT] if len(word) > 3]
    asked = frequent[:: max(1, len(frequent) // ASKED)][:ASKED]
    lines = [f"{word:16}{', '.join(near for near, _ in vectors.neighbours(word, 6))}" for word in asked]
    write_results(
        folder,
        title=folder.name,
        final={"parameters": result.parameters},
        data={"name": ", ".join(source.path for source in run.data.sources), **result.facts},
        samples=[{"title": "Nearest words", "text": "\n".join(lines)}],
        machine=machine.facts(),
        reproduce=[f"onefold train {folder / 'config.json'}"],
    )
    page = write_report(folder)
    say(f"look at {page}")
    return page


def of_pictures(dataset: ImageDataset, folder: Path, device: torch.device) -> dict[str, Any]:
    """What a model of pictures made of all those that were held out; how good its features are where it names none."""
    loaded = open_model(folder, device, torch.float32)
    final: dict[str, Any] = {"parameters": sum(p.numel() for p in loaded.model.parameters())}
    if not (dataset.size("held_out") and dataset.classes):
        return {"final": final}
    if getattr(loaded.config, "classes", 0):
        shown = picture_results(loaded.model, dataset.evaluation("held_out", ROWS), dataset.classes)
        final |= {name: shown[name] for name in ("accuracy", "top5") if name in shown}
        return {"pictures": shown, "final": final}
    judged = judge_features(loaded.model, dataset, ROWS)
    final |= {"accuracy of nearest neighbours": judged["neighbours"], "accuracy of a linear probe": judged["probe"]}
    return {"final": final}


def of_pairs(dataset: TextPairsDataset, folder: Path, device: torch.device) -> dict[str, Any]:
    """What a model of two texts wrote about the first pairs of those that were held out."""
    model = load(folder, device)
    found: dict[str, Any] = {"final": {"parameters": model.parameters_count}}
    if not dataset.size("held_out"):
        return found
    shown = translation_results(model, list(islice(dataset.texts("held_out"), PAIRS)))
    figures = {score["name"].lower(): score["value"] for score in shown["scores"]}
    return {"translations": shown, "final": found["final"] | figures}


def of_rows(dataset: LabelledTextDataset, folder: Path, device: torch.device) -> dict[str, Any]:
    """What a model that was fine-tuned on rows made of those that were held out."""
    model = load(folder, device)
    final: dict[str, Any] = {"parameters": model.parameters_count}
    rows = list(dataset.examples("held_out"))
    if not rows or not isinstance(model, TextEncoder):
        return {"final": final}
    return {"final": final, "texts": text_results(model, rows)}


def _dataset(result: Result) -> Any:
    """What the run has read; of a run that was finished before, only where its review is still missing."""
    if result.dataset is not None:
        return result.dataset
    if dist.world() > 1 or "final" in read_results(result.out):
        return None
    return result.run.data.prepare(result.out / "data", first_processor(result.run, None), keep=True)
