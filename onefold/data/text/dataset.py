"""Prepared data: tokens of a training and a held-out split in records, and the batches made of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from onefold.core.batch import Batch, TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.facts import FACTS, PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.prepared import SPLITS, Split
from onefold.data.records import Column, Records, RecordsWriter
from onefold.data.sources import Document
from onefold.data.text.plan import Plan, plan_evaluation, plan_mixture, plan_rows
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.data.text.windows import gather


class Dataset:
    """What `prepare` returns.

    `processor`, the `tokenizer`, is the one that made the tokens; `facts` has the corpus hash and, for each split,
    documents, bytes and tokens (targets to predict, so every document's end counts and its start does not).
    """

    batch: type[Batch] = TokenBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()  # of what a model names
    frame = 0  # places around every piece of a document

    def __init__(self, folder: Path, context: int, shares: Sequence[float] | None = None):
        """shares: of all training tokens, one for each source; None: every document once in an epoch."""
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self.context = self.length = context  # `length`: of a row's text, where that is another than what a model reads
        self._shares = shares
        self._records = {split: Records(folder / split, verify=False) for split in SPLITS}
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0

    def loader(
        self,
        split: Split,
        rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        state: dict[str, int] | None = None,
    ) -> Loader:
        """Endless shuffled batches, `rows` rows over all processes together, of which this one gets rows / world.

        Every token comes exactly once in an epoch (with weighted sources: in its share). A batch has `segments` None,
        or every row may hold several documents.
        """
        self._check(split)
        return Loader(partial(self.plan, split, rows, seed), self._gather(split, seed), rows, rank, world, state)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> Plan:
        """What the loader reads in an epoch."""
        lengths = self._lengths(split)
        if self._shares is None or split != "train":
            return plan_rows(lengths, self.length, rows, seed, epoch, self.frame)
        records = self._records[split]
        sources = records.strided("source").gather(np.arange(len(records)))
        return plan_mixture(lengths, sources, self._shares, self.length, rows, seed, epoch, self.frame)

    def evaluation(self, split: Split, rows: int, stride: int | None = None) -> Evaluation[Plan, TokenBatch]:
        """Every token of the split exactly once, always in the same order, of which any beginning is a fair sample.

        stride: windows overlap and each predicts its last `stride` tokens, so that these see a long context.
        """
        self._check(split)
        plan = plan_evaluation(self._lengths(split), self.length, rows, stride, self.frame)
        return Evaluation(plan, self._gather(split), len(plan.first) - 1, rows)

    def size(self, split: Split) -> int:
        """Tokens to predict."""
        return self.facts[split]["tokens"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """What `sums` of an evaluation's terms amount to, when a fair sample, this `share` of the split, was read."""
        return {"bits_per_byte": sums["ce"] / share / math.log(2) / self.bytes(split)} if "ce" in sums else {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config, if it reads these tokens; with `grow`, one whose vocabulary has room for new tokens.

        Errors: UserError when it is no language model, lacks room, or rows are longer than its context.
        """
        if "start" in type(model).model_fields:
            raise UserError(
                "a model that reads one text and writes another needs pairs: data.kind=text_pairs or denoising"
            )
        return fit_tokens(model, self.tokenizer, self.context, grow)

    def bytes(self, split: Split) -> int:
        """UTF-8 bytes of the text that the split's targets spell, for bits per byte.

        The targets also say where each document ends, so their cost is that of a text which can be read back whole.
        """
        return self.facts[split]["bytes"]

    def text(self, split: Split) -> Iterator[Document]:
        """The split's documents, read from the records one by one."""
        records = self._records[split]
        for i in range(len(records)):
            yield Document(str(records["name"][i]), str(records["text"][i]))

    def _lengths(self, split: Split) -> np.ndarray:
        return np.maximum(self._records[split].ragged("tokens").lengths - 1, 0)

    def _gather(self, split: Split, seed: int | None = None) -> Callable[[Plan, slice], TokenBatch]:
        """What makes a batch of some rows of a plan. seed: of what is random in training; None: an evaluation."""
        records = self._records[split]
        learned = records.ragged("learned") if "learned" in records.columns else None
        return partial(gather, tokens=records.ragged("tokens"), pad=self._pad, learned=learned)

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.facts[split]["tokens"]:
            reason = "set held_out above 0, or give a validation file" if split == "held_out" else "give more text"
            raise UserError(f"the {split} split of the data is empty: {reason}")


def fit_tokens(model: Config, tokenizer: Tokenizer, length: int, grow: bool) -> Config:
    """The model's config, if it reads rows of `length` of these tokens; with `grow`, with room for all of them.

    Where data tell no prefixes, a model that read prompts whole learns to read forwards only, and does so from then on.

    Errors: UserError when it is no language model, lacks room, or rows are longer than its context.
    """
    vocab, context = getattr(model, "vocab", None), getattr(model, "context", None)
    if vocab is None or context is None:
        raise UserError(f"text needs a language model, not a {getattr(model, 'kind', 'model of another kind')}")
    if length > context:
        raise UserError(f"data.context={length} is longer than model.context={context}")
    if getattr(model, "prefix", False):
        model = model.but({"prefix": False})
    if tokenizer.size <= vocab:
        return model
    if not grow:
        raise UserError(
            f"the tokenizer has {tokenizer.size} tokens, the model room for {vocab}: set model.vocab={tokenizer.size}"
        )
    return model.but({"vocab": tokenizer.size})


class SplitWriter:
    """Writes documents into the records of their split and counts them."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, learned: bool = False):
        token = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
        columns = {
            "name": Column("text"),
            "source": Column("uint16"),
            "text": Column("text"),
            "tokens": Column(token, ragged=True),
        }
        if learned:
            columns["learned"] = Column("uint8", ragged=True)
        self.facts: dict[Split, dict[str, int]] = {s: {"documents": 0, "bytes": 0, "tokens": 0} for s in SPLITS}
        self._writers = {split: RecordsWriter(folder / split, columns) for split in SPLITS}

    def __enter__(self) -> Self:
        for writer in self._writers.values():
            writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self._writers.values():
            writer.__exit__(*error)

    def add(self, split: Split, size: int, **record: Any) -> None:
        """A document of which `size` bytes are to be predicted."""
        self._writers[split].add(**record)
        counts = self.facts[split]
        counts["documents"] += 1
        counts["bytes"] += size
        counts["tokens"] += max(0, len(record["tokens"]) - 1)


def is_text_store(path: str | Path) -> bool:
    """Whether a prepared folder of tokens lies at `path`."""
    folder = Path(path).expanduser()
    return (folder / PROCESSOR / "tokenizer.json").is_file() and (folder / FACTS).is_file()
