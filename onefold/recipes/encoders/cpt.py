"""cpt (Neelakantan et al. 2022, "Text and Code Embeddings by Contrastive Pre-Training", arXiv 2201.10005).

Claim: a generative model that goes on learning which of many texts stood beside a given one makes vectors that find
and tell apart texts and code without labels. Batches are very large, since a batch's other texts are all negatives.

Deviations: attention is dense everywhere. Learning rate, schedule and number of steps were not published; these are
ours. The paper's pairs come from the Internet; here from `data`: passages and those behind them ("text"), docstrings
and their functions ("code").

Begin with a model that writes: `onefold train cpt start=runs/gpt2 what=code`.
"""

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from onefold.core.batch import PairedTextBatch
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.prepared import SPLITS
from onefold.data.text.documents import LoadTokenizer, TextData, TrainBPE
from onefold.data.text.pairs.contrastive import Columns, ContrastiveTextData, Delimiters, Docstrings, Neighbours
from onefold.infer.embedder import TextEmbedder, as_embedder
from onefold.infer.model import load
from onefold.infer.retrieve import BM25, Quality, quality, search, words
from onefold.models import families
from onefold.models.embedder import EmbedderConfig
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.objectives.base import Loss
from onefold.objectives.contrastive import Contrast, InfoNCE, infonce
from onefold.study.check import Report, whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

DELIMITERS: Delimiters = (("[", "]"), ("{", "}"))  # section 2.1: different ones make training more stable
# layers, width, heads, rows of a batch: table 1, and GPT-3's table 2.1 (arXiv 2005.14165)
SIZES = {
    "s": (24, 1024, 16, 12_288),
    "m": (24, 2048, 16, 6_912),
    "l": (32, 4096, 32, 5_896),
    "xl": (96, 12_288, 96, 4_976),
}
What = Literal["text", "code"]


def trunk(size: str) -> DecoderConfig:
    """GPT-3's shapes."""
    depth, width, heads, _ = families.pick(SIZES, size, "cpt")
    shape = {"depth": depth, "width": width, "block.mixer.heads": heads, "block.ffn.width": 4 * width}
    return families.gpt2().but({**shape, "context": 2048, "embed.position.context": 2048})


def recipe(
    data: str = "stdlib", what: What = "text", size: str = "s", start: str | None = None, tokenizer: str | None = None
) -> Run:
    """Sizes: s (300M), m (1.2B), l (6B), xl (175B). start: a decoder to begin with, which then says its own size."""
    batch = families.pick(SIZES, size, "cpt")[3]
    if what not in ("text", "code"):
        raise UserError(f"cpt: what={what} is not known; use text or code")
    vocab = trunk(size).vocab
    own = LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=vocab)
    return Run(
        data=ContrastiveTextData(
            path=data,
            pairs=Docstrings() if what == "code" else Neighbours(characters=2000),
            context=512,
            delimiters=DELIMITERS,
            tokenizer=None if start else own,
        ),
        model=None if start else EmbedderConfig(trunk=trunk(size), pooling="last"),
        objective=InfoNCE(),
        optimizer=AdamWConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1),
        trainer=TrainerConfig(
            steps=50_000, batch=batch, schedule=Cosine(warmup=0.05), evaluate_every=1000, checkpoint_every=1000
        ),
        start=start,
        out="runs/cpt",
    )


def tiny(data: str = "stdlib", what: What = "code", start: str | None = None, tokenizer: str | None = None) -> Run:
    """A small model that finds code by docstrings: three minutes on two cores, half of it with `start`."""
    run = recipe(data, what, start=start, tokenizer=tokenizer)
    changes: dict[str, Any] = {
        "data.context": CONTEXT,
        "optimizer.lr": 4e-3,
        "trainer": {"steps": 400, "batch": 128, "evaluate_every": 100, "checkpoint_every": 100},
    }
    if start is None:
        changes["model.trunk"] = small_trunk().to_dict()
        changes |= {} if tokenizer else {"data.tokenizer.vocab": VOCAB}
    return run.but(changes)


def small_trunk() -> DecoderConfig:
    position = {"embed.position.context": CONTEXT, "embed.dropout": 0.0}
    block = {"heads": 4, "dropout": 0.0}
    shape = {"vocab": VOCAB, "width": 64, "depth": 2, "context": CONTEXT, "block.dropout": 0.0}
    return trunk("s").but({**shape, **position, "block.mixer": block, "block.ffn.width": 256})


# --- The check ------------------------------------------------------------------------------------------------------

CONTEXT, VOCAB = 48, 4096
SEEDS = (0, 1, 2)
HELD_OUT = 0.2  # share of the modules
BATCHES = (8, 32, 128)
EXAMPLES = 8192  # pairs that a model of the check learns from, whatever its batch: two epochs
LEARNED = 128  # steps of the generative model that all begin with
PARAMETERS = {"s": "300M", "m": "1.2B", "l": "6B", "xl": "175B"}  # the paper's, which leave out the embedding
FOLDER = Path("runs/check/cpt")


def check(report: Report) -> None:
    """Sizes; gradients in chunks; docstrings find functions; larger batches; beside BM25; from a generative model.

    Texts are pooled by the mean: the last token of so small a model learns too slowly to compare anything.
    """
    for size, said in PARAMETERS.items():
        config = trunk(size)
        inside = count_parameters(config) - (config.vocab + config.context) * config.width
        report.equal(f"parameters without the embedding, {size}", _short(inside), said)
    report.less("largest difference of a gradient in chunks to that of the whole batch", _chunked(), 1e-6)

    pairs = [json.loads(line) for line in _tables()[1].read_text().splitlines()]
    queries, documents = ([pair[side] for pair in pairs] for side in ("query", "document"))
    relevant = [[i] for i in range(len(pairs))]
    found: dict[str, list[Quality]] = {}
    rankings: dict[str, list[torch.Tensor]] = {}
    for batch, first in (*((batch, False) for batch in BATCHES), (BATCHES[-1], True)):
        models = [_embedder(batch, seed, generative=first) for seed in SEEDS]
        name = f"batches of {batch}" + (", from a generative model" if first else "")
        rankings[name] = [_ranking(model, queries, documents) for model in models]
        found[name] = [quality(ranking, relevant) for ranking in rankings[name]]
    for name, qualities in found.items():
        recalls = [q.recall[10] for q in qualities]
        report.less(f"recall@10 by chance among {len(pairs)} functions, against {name}", 10 / len(pairs), recalls)
        report.note(f"recall@10 of functions of other modules by their docstrings, {name}", recalls)
        report.note(f"MRR, {name}", [q.mrr for q in qualities])
    means = [sum(q.recall[10] for q in found[f"batches of {batch}"]) for batch in BATCHES]
    rises = all(a < b for a, b in pairwise(means))
    report.note(f"recall rises with the batch, {EXAMPLES:,} pairs each", "yes" if rises else "no")

    best = max(found, key=lambda name: sum(q.mrr for q in found[name]))
    by_words = BM25(documents).search(queries, len(documents))[1]
    report.note("recall@10, BM25", quality(by_words, relevant).recall[10])
    report.note("MRR, BM25", quality(by_words, relevant).mrr)
    shared = torch.tensor([_shared(query, document) for query, document in zip(queries, documents)])
    for name, some in (("fewest", shared.argsort()[: len(pairs) // 4]), ("most", shared.argsort()[-len(pairs) // 4 :])):
        own = [relevant[i] for i in some.tolist()]
        label = f"MRR where docstring and function share the {name} words (a quarter)"
        report.note(f"{label}, BM25", quality(by_words[some], own).mrr)
        report.note(f"{label}, {best}", [quality(ranking[some], own).mrr for ranking in rankings[best]])
    report.published("code search over prior work, relative", "+20.8%")


def _short(count: int) -> str:
    """As the paper rounds: one digit of billions or hundreds of millions, 175B in full."""
    if count < 1e9:
        return f"{count / 1e8:.0f}00M"
    return (
        f"{count / 1e9:.1f}B" if count < 2e9 else f"{int(count / 1e9)}B" if count < 1e11 else f"{count / 1e9 + 1:.0f}B"
    )


def _chunked() -> float:
    """With dropout, so that the random numbers of the second reading matter, too."""
    torch.manual_seed(0)
    model = EmbedderConfig(trunk=small_trunk().but({"block.dropout": 0.1}), pooling="last").build()
    (tokens, others), (lengths, other_lengths) = torch.randint(0, VOCAB, (2, 24, 16)), torch.randint(4, 17, (2, 24))
    batch = PairedTextBatch(tokens=tokens, lengths=lengths, others=others, other_lengths=other_lengths)

    def gradient(loss: Callable[[], Loss]) -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(1)
        loss().terms["nce"].sum.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]) / batch.rows

    def whole() -> Loss:
        sides = zip(*([model.encode(*inputs) for inputs in part.sides()] for part in batch.split(7)))
        return infonce(*map(torch.cat, sides), model.log_scale())

    return (gradient(whole) - gradient(lambda: Contrast(chunk=7)(model, batch, 0))).abs().max().item()


@cache
def _tables() -> tuple[Path, Path]:
    """Pairs of docstrings and functions to learn from and to be found, of different modules, and their tokenizer."""
    files = FOLDER / "train.jsonl", FOLDER / "held_out.jsonl"
    if not all(file.is_file() for file in (*files, FOLDER / "tokenizer" / "tokenizer.json")):
        tokenizer = TrainBPE(vocab=VOCAB)
        data = ContrastiveTextData(pairs=Docstrings(), context=CONTEXT, tokenizer=tokenizer, held_out=HELD_OUT)
        dataset = data.prepare(FOLDER / "data")
        (FOLDER / "tokenizer").mkdir(parents=True, exist_ok=True)
        dataset.tokenizer.save(FOLDER / "tokenizer")
        for file, split in zip(files, SPLITS):
            rows = ({"query": first, "document": second} for _, first, second in dataset.texts(split))
            atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
    return files


@cache
def _generative() -> str:
    """A decoder that has read the modules to learn from for a while; where it is."""
    _tables()
    run = Run(
        data=TextData(context=CONTEXT, held_out=HELD_OUT, tokenizer=LoadTokenizer(path=str(FOLDER / "tokenizer"))),
        model=_shallow(),
        optimizer=AdamWConfig(lr=5e-3),
        trainer=_briefly(LEARNED, 64),
        out=FOLDER / "generative",
    )
    return str(whole(train(run)).out)


def _embedder(batch: int, seed: int, generative: bool) -> TextEmbedder:
    """One that learned from EXAMPLES pairs. The learning rate grows with the root of the batch."""
    train_file, held_out = map(str, _tables())
    run = tiny(train_file, tokenizer=str(FOLDER / "tokenizer")).but(
        {
            "data.pairs": Columns().to_dict(),
            "data.validation": held_out,
            "model.pooling": "mean",
            "model.trunk": _shallow().to_dict(),
            "start": _generative() if generative else None,
            "optimizer.lr": 8e-3 * (batch / BATCHES[-1]) ** 0.5,
            "trainer": _briefly(EXAMPLES // batch, batch).to_dict(),
            "seed": seed,
            "out": str(FOLDER / ("generative-first" if generative else "scratch") / f"{batch}-{seed}"),
        }
    )
    return as_embedder(load(whole(train(run)).out), run.out)


def _shallow() -> DecoderConfig:
    return small_trunk().but({"depth": 1, "block.ffn.width": 128})


def _briefly(steps: int, batch: int) -> TrainerConfig:
    """Judged at the end alone, by a sample."""
    ends = {"evaluate_every": steps, "checkpoint_every": steps, "evaluate_batches": 8}
    return TrainerConfig(steps=steps, batch=batch, schedule=Cosine(warmup=0.1), **ends)


def _ranking(model: TextEmbedder, queries: list[str], documents: list[str]) -> torch.Tensor:
    """All documents for each query, the nearest first."""
    return search(model.embed(queries, "query"), model.embed(documents, "document"), len(documents))[1]


def _shared(query: str, document: str) -> float:
    """The share of the query's words that stand in the document."""
    asked, there = set(words(query)), set(words(document))
    return len(asked & there) / max(1, len(asked))
