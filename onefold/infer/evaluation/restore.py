"""How well an encoder-decoder restores text, by the noise that it was trained on; of pairs, see translate.py."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.tables import TABLES
from onefold.data.text.denoising import DenoisingTextData
from onefold.infer.evaluation.evaluate import Score, evaluate
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.infer.translate import Judged, judge_pairs

PAIRS = {"source", "target", "prefix"}  # settings that only pairs have


@dataclass(frozen=True)
class Restored:
    """What it cost to say what was hidden, of some documents, with this noise."""

    loss: Score
    documents: int
    noise: str

    def __str__(self) -> str:
        found = f"loss {self.loss.loss:.4f}, perplexity {self.loss.perplexity:.2f}"
        return f"{found} ({self.loss.tokens:,.0f} tokens to say about {self.documents:,} documents, noise {self.noise})"


def judge_texts(model: Seq2SeqModel, data: str, **settings: Any) -> Restored | Judged:
    """Evaluate on pairs, or on text where the model was trained to restore it; print the figures and return them.

    Files that are SOURCE,TARGET, settings of pairs, and tables where the model was also trained on pairs mean pairs.
    settings: noise (as data.noise; needed where the model's card tells none), context and rows; or of `judge_pairs`.
    """
    trained = trained_on(model.card)
    restores = next((part for part in trained if part.get("kind") == "denoising"), None)
    table = bool(set(Path(data).suffixes) & set(TABLES))
    only = len(trained) == 1 and restores is not None
    pairs = "," in data or PAIRS & set(settings) or (table and not only)
    if "noise" in settings or (restores and not pairs):
        return judge_restoring(model, data, restores or {}, **settings)
    if not pairs and Path(data).expanduser().exists():
        raise UserError(
            f"nothing tells how this model should be asked about {data}: give pairs, as SOURCE,TARGET or a table, or "
            "what it shall restore, as noise=spans (T5), noise=infilling (BART) or noise=prefix"
        )
    return judge_pairs(model, data, **settings)


def judge_restoring(
    model: Seq2SeqModel, data: str, trained: Mapping[str, Any], rows: int = 8, **settings: Any
) -> Restored:
    """Hide parts of text as in training and tell what it costs to say them; the noise is the same every time.

    trained: the model's own data config, {} where it is not known. Of the source that the model was trained on, what
    was held out counts.
    """
    given = {"tokenizer": {"kind": "load", "path": "."}, "context": min(512, model.context or 512), **trained}
    own = data in [source["path"] for source in trained.get("sources", ())]
    if own:
        say(f"{data} is what the model was trained on: judged by what was held out of it")
    else:
        given |= {"sources": data, "held_out": 0.0, "validation": None}
    config = DenoisingTextData.from_dict({**given, **settings})
    split = "held_out" if own else "train"
    with tempfile.TemporaryDirectory() as folder:
        dataset = config.prepare(Path(folder), model.tokenizer)  # so the configured tokenizer is never read
        if model.context is not None:
            dataset.fit(model.config, grow=False)
        loss = evaluate(model.network, dataset.evaluation(split, rows), 0)
    found = Restored(loss, dataset.facts[split]["documents"], config.noise.kind)
    print(found)
    return found


def trained_on(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The data configs that a model's card tells it was trained on: one, those of a mixture, or none."""
    data = (card.get("run") or {}).get("data") or {}
    return [part["data"] for part in data["parts"]] if "parts" in data else [data] if data else []
