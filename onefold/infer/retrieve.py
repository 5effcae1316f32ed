"""Finding documents for queries: exact search over vectors, BM25 over words, and how good a ranking is."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from onefold.core.errors import UserError, missing_extra
from onefold.core.progress import say
from onefold.data.tables import TABLES
from onefold.data.text.pairs.contrastive import Columns, ContrastiveTextData, Docstrings, Neighbours, read_pairs
from onefold.infer.embedder import SIDES, TextEmbedder

SCORES = 2**24  # held at once
TOP = 100  # ranks that are looked at unless all are asked for
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


def search(
    queries: Float[Tensor, "Q D"], documents: Float[Tensor, "N D"], top: int = TOP
) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
    """The `top` largest products of each query and the documents' places, the largest first.

    Of vectors of length 1 these are the nearest. Memory: SCORES products at a time.
    """
    top = min(top, len(documents))
    found = []
    for some in queries.split(max(1, SCORES // max(1, len(documents)))):
        found.append((some @ documents.T).topk(top))
    if not found:
        return queries.new_empty((0, top)), torch.empty((0, top), dtype=torch.long)
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


class BM25:
    """The ranking by words that embeddings have to beat (Robertson and Zaragoza 2009; Lucene's variant)."""

    def __init__(self, documents: Sequence[str], k1: float = 1.5, b: float = 0.75):
        """Raises UserError without the package bm25s."""
        try:
            from bm25s import BM25 as Index
        except ImportError:
            raise missing_extra("bm25s", "retrieve", "BM25") from None
        self._count = len(documents)
        self._index = Index(k1=k1, b=b, method="lucene")
        self._index.index([words(text) or [""] for text in documents], show_progress=False)

    def search(self, queries: Sequence[str], top: int = TOP) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
        """As `search` of vectors does; documents that share no word with a query come last, with 0."""
        known = self._index.vocab_dict
        asked = [[word for word in words(query) if word in known] for query in queries]
        top = min(top, self._count)
        places, scores = np.empty((len(asked), top), np.int64), np.empty((len(asked), top), np.float32)
        for row, some in enumerate(asked):
            found = self._index.get_scores(some) if some else np.zeros(self._count, np.float32)
            places[row] = np.argsort(-found, kind="stable")[:top]
            scores[row] = found[places[row]]
        return torch.from_numpy(scores), torch.from_numpy(places)


def words(text: str) -> list[str]:
    """Words in small letters; names in code fall into those that they are made of (readLine2, max_size)."""
    return [word.lower() for word in _WORDS.findall(text)]


def evaluate_retrieval(
    model: TextEmbedder, data: str, first: str | None = None, second: str | None = None
) -> "dict[str, Quality]":
    """Find the second text of each pair by the first one, by vectors and by words; print how well either does.

    data: a table with columns `first` and `second` (None: by their usual names), or documents, of which the model finds
    what it was trained to find; if that is not known, by docstrings of Python sources ("stdlib") their functions. Equal
    second texts are one document.
    """
    made = Columns(first=first, second=second) if Path(data).suffix in TABLES else _trained_on(model)
    pairs = list(read_pairs(data, made))
    if not pairs:
        raise UserError(f"{data} holds no pairs of texts")
    documents = list(dict.fromkeys(pair[2] for pair in pairs))
    place = {text: n for n, text in enumerate(documents)}
    wanted: dict[str, set[int]] = {}
    for _, query, document in pairs:
        wanted.setdefault(query, set()).add(place[document])
    queries = list(wanted)
    vectors = [model.embed(texts, kind) for texts, kind in zip((queries, documents), SIDES)]
    found = {"vectors": quality(search(*vectors)[1], list(wanted.values()))}
    try:
        found["BM25"] = quality(BM25(documents).search(queries)[1], list(wanted.values()))
    except UserError as error:
        say(str(error))
    print(f"{len(queries):,} queries, {len(documents):,} documents")
    print(f"{'':<10}{'recall@1':>10}{'recall@10':>11}{'MRR':>8}{'nDCG@10':>9}")
    for name, q in found.items():
        print(f"{name:<10}{q.recall[1]:>10.1%}{q.recall[10]:>11.1%}{q.mrr:>8.3f}{q.ndcg:>9.3f}")
    return found


def _trained_on(model: TextEmbedder) -> Docstrings | Neighbours:
    """How the pairs of documents are made that the model learned from."""
    given = model.card.get("run", {}).get("data", {})
    pairs = ContrastiveTextData.from_dict({"pairs": given["pairs"]}).pairs if "pairs" in given else Docstrings()
    return Docstrings() if isinstance(pairs, Columns) else pairs


@dataclass(frozen=True)
class Quality:
    """How good rankings are, averaged over queries; all between 0 and 1."""

    recall: dict[int, float]  # share of the relevant documents among the first k
    mrr: float  # 1 / rank of the first relevant document; 0 where none was found
    ndcg: float  # at 10: gains fall with the logarithm of the rank (Järvelin and Kekäläinen 2002)


def quality(
    found: Int[Tensor, "Q K"], relevant: Sequence[Collection[int]], cuts: Sequence[int] = (1, 10), depth: int = 10
) -> Quality:
    """Of the documents `found` for each query, the best first, when these are relevant. depth: of nDCG."""
    places = found.numpy()
    hits = np.array([[place in wanted for place in row] for row, wanted in zip(places.tolist(), map(set, relevant))])
    counts = np.array([len(set(wanted)) for wanted in relevant])
    if not len(hits) or not counts.all():
        raise ValueError("every query needs a relevant document")
    ranks = np.where(hits.any(1), hits.argmax(1) + 1, np.inf)
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    gained = (hits[:, :depth] * discounts[: hits.shape[1]]).sum(1)
    ideal = np.cumsum(discounts)[np.minimum(counts, depth) - 1]
    return Quality(
        {k: float((hits[:, :k].sum(1) / counts).mean()) for k in cuts},
        float((1 / ranks).mean()),
        float((gained / ideal).mean()),
    )
