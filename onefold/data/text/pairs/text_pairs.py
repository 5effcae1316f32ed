"""Pairs of texts, one to read and one to write: translation, and any task that is told as text.

Pairs → records of two splits → batches of similar lengths that hold a number of tokens, not of pairs.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field

from onefold.core.batch import Batch, Seq2SeqBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data import split as splits
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import stamp
from onefold.data.split import choose, content_hash
from onefold.data.text.corruption.sequences import Sequences, stacked
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.pairs.aligned import Count, Pair, read_pairs
from onefold.data.text.pairs.seq2seq import Examples, fit_seq2seq, seq2seq_batch
from onefold.data.text.pairs.synthetic import SYNTHETIC
from onefold.data.text.pairs.token_batches import TokenPlan, plan_tokens
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS, Tokenizer

TOGETHER = 4096  # pairs tokenized at once
SIDES = ("source", "target")


def _files(value: Any) -> Any:
    """ "a,b" as two files."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


Files = Annotated[tuple[str, ...], BeforeValidator(_files), Field(min_length=1, max_length=2)]


class TextPairsData(Config):
    """Two files aligned line by line (SOURCE,TARGET), or a CSV, TSV, JSONL or Parquet file with a column for each side.

    "synthetic" is sentences of a made-up grammar (synthetic.py). A batch of `trainer.batch` rows holds as many tokens
    a side as so many rows of `context` tokens, padding included, in pairs of similar length.
    """

    kind: Literal["text_pairs"] = "text_pairs"
    path: Files = (SYNTHETIC,)
    source: str | None = None  # columns of a table; of a column "translation" that holds objects, the languages in it…
    target: str | None = None  # …None: by their usual names
    prefix: str = ""  # what is read before every source: "translate German to English: "
    context: int = Field(default=256, ge=4)  # tokens of a side, special ones included; longer pairs are left out
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] = TrainBPE(vocab=8192, special=T5_TOKENS)  # of both sides
    held_out: float = Field(default=0.02, ge=0, le=0.5)  # share of the pairs
    validation: Files | None = None  # pairs to evaluate on instead of those held out
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "TextPairsDataset":
        """The pairs as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: used instead of the configured one (that of the model to go on with). keep: as in TextData. Raises
        UserError when files are not aligned, or nothing is left to learn from.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("pairs", what)
        paths = (*self.path, *(self.validation or ()))
        stamps = {path: SYNTHETIC if path == SYNTHETIC else stamp(path) for path in paths}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = TextPairsDataset(target, self.context)
        if new:
            say(dataset.describe())
        return dataset

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        shared = _Corpus.scan(self)
        if tokenizer is None:
            some = shared.sample(self.tokenizer.sample_bytes) if isinstance(self.tokenizer, TrainBPE) else iter(())
            tokenizer = self.tokenizer.build(some)
        before, after = tokenizer.prefix, tokenizer.suffix
        token = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
        texts = {"name": Column("text"), "source_text": Column("text"), "target_text": Column("text")}
        columns = texts | {side: Column(token, ragged=True) for side in SIDES}
        counts = {split: {"pairs": 0, "source_tokens": 0, "target_tokens": 0, "too_long": 0} for split in SPLITS}
        with (
            RecordsWriter(folder / "train", columns) as train,
            RecordsWriter(folder / "held_out", columns) as held_out,
            Progress("tokenizing", shared.total, "pairs") as bar,
        ):
            writers = {"train": train, "held_out": held_out}
            pairs = shared.pairs()
            while some := list(islice(pairs, TOGETHER)):
                encoded = [
                    tokenizer.encode_batch(each)
                    for each in ([pair.source for _, pair in some], [pair.target for _, pair in some])
                ]
                for (split, pair), *sides in zip(some, *encoded):
                    source, target = ([*before, *ids, *after] for ids in sides)
                    if max(len(source), len(target)) > self.context:
                        counts[split]["too_long"] += 1
                        continue
                    texts = {"name": pair.name, "source_text": pair.source, "target_text": pair.target}
                    writers[split].add(**texts, source=source, target=target)
                    counts[split]["pairs"] += 1
                    counts[split]["source_tokens"] += len(source)
                    counts[split]["target_tokens"] += len(target)
                bar.update(len(some))
        if not counts["train"]["pairs"]:
            raise UserError("nothing is left to train on: every pair is held out, empty or longer than data.context")
        return tokenizer, {"hash": shared.hash, "empty": shared.empty, **counts, "vocab": tokenizer.size}


@dataclass(frozen=True)
class _Corpus:
    """A source's pairs, read once to decide which are held out, and again for whatever is done with them."""

    data: TextPairsData
    split: splits.Split
    last: float  # pairs from this one on are held out whatever they are
    total: int
    bytes: int
    empty: int
    hash: str

    @classmethod
    def scan(cls, data: TextPairsData) -> Self:
        count, hashed = Count(), hashlib.blake2b(digest_size=8)
        keys, own, sizes = array("Q"), array("Q"), array("Q")
        for files, found in ((data.path, keys), (data.validation, own)):
            for pair in _read(data, files, count):
                found.append(_key(data, pair))
                text = f"{len(found)}\0{pair.source}\0{pair.target}\0".encode("utf-8", "replace")
                hashed.update(text)
                if found is keys:
                    sizes.append(len(text))
        if not keys:
            raise UserError(f"{', '.join(data.path)}: there are no pairs of texts")
        held_out = 0.0 if own else data.held_out
        split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), held_out)
        last = len(keys) * (1 - split.tail)
        if own:
            split = splits.Split(np.unique(np.array(own, np.uint64)))
        return cls(data, split, last, len(keys) + len(own), sum(sizes), count.empty, hashed.hexdigest())

    def pairs(self) -> Iterator[tuple[Split, Pair]]:
        """Every pair in its split. Of equal sources all are in the same one: that of the validation files, if any."""
        for n, pair in enumerate(_read(self.data, self.data.path, Count())):
            aside = self.split.whole(_key(self.data, pair)) or n >= self.last
            if not (aside and self.data.validation):
                yield SPLITS[aside], pair
        for pair in _read(self.data, self.data.validation, Count()):
            yield "held_out", pair

    def sample(self, budget: int) -> Iterator[str]:
        """Training texts of both sides, about `budget` bytes, spread evenly over the corpus."""
        share = min(1.0, budget / max(1, self.bytes))
        for split, pair in self.pairs():
            if split == "train" and content_hash(pair.source, self.data.split_seed + 1) < share * 2**64:
                yield from (pair.source, pair.target)


def _read(data: TextPairsData, files: tuple[str, ...] | None, count: Count) -> Iterator[Pair]:
    for pair in read_pairs(files, data.source, data.target, count) if files else ():
        yield replace(pair, source=data.prefix + pair.source)


def _key(data: TextPairsData, pair: Pair) -> int:
    return content_hash(pair.source, data.split_seed)


class TextPairsDataset:
    """What `prepare` returns. `facts` has, for each split, pairs and tokens, and how many were too long."""

    batch: type[Batch] = Seq2SeqBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()  # of what a model names

    def __init__(self, folder: Path, context: int):
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self.context = context
        self._records = {split: Records(folder / split) for split in SPLITS}
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, int] | None = None
    ) -> Loader[TokenPlan, Seq2SeqBatch]:
        """Endless shuffled batches of as many tokens as `rows` rows over all processes have at most.

        Every pair comes once in an epoch; the last batch of one is filled up with pairs that come twice.
        """
        self._check(split)
        return Loader(partial(self.plan, split, rows, seed), partial(self._batch, split), rows, rank, world, state)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> TokenPlan:
        """What the loader reads in an epoch."""
        return plan_tokens(self._lengths(split), self.context, rows, seed, epoch)

    def evaluation(self, split: Split, rows: int) -> Evaluation[TokenPlan, Seq2SeqBatch]:
        """Every pair of the split once, always in the same order."""
        self._check(split)
        plan = plan_tokens(self._lengths(split), self.context, rows, fill=False)
        return Evaluation(plan, partial(self._batch, split), plan.count, rows)

    def examples(self, split: Split, seed: int | None, epoch: int) -> Examples:
        """The pairs of an epoch one by one, for mixtures; of the evaluation, where `seed` is None."""
        count = self.facts[split]["pairs"]
        order = np.random.default_rng(0 if seed is None else (seed, epoch)).permutation(count)
        return Examples(count, lambda rows: self._sides(split, order[rows]))

    def size(self, split: Split) -> int:
        """Tokens to predict."""
        return self.facts[split]["target_tokens"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config, if it reads these tokens; with `grow`, one whose vocabulary has room for new tokens.

        Errors: UserError when it does not read one text to write another, lacks room, or its context is too short.
        """
        return fit_seq2seq(model, self.tokenizer, self.context, grow)

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """(source, target) of each pair, in the order of the files."""
        records = self._records[split]
        for i in range(len(records)):
            yield str(records["source_text"][i]), str(records["target_text"][i])

    def describe(self) -> str:
        """One line: what each split holds, and what was left out."""
        train, held_out = (self.facts[split] for split in SPLITS)
        tokens = train["source_tokens"] + train["target_tokens"]
        line = f"{train['pairs']:,} pairs to learn from ({tokens:,} tokens), {held_out['pairs']:,} held out; "
        line += f"vocabulary {self.tokenizer.size:,}"
        if empty := self.facts["empty"]:
            line += f"; {empty:,} left out with nothing on one side"
        if long := train["too_long"] + held_out["too_long"]:
            line += f"; {long:,} left out as longer than {self.context} tokens (data.context)"
        return line

    def _lengths(self, split: Split) -> np.ndarray:
        return np.stack([self._records[split].ragged(side).lengths for side in SIDES], axis=1)

    def _batch(self, split: Split, plan: TokenPlan, rows: slice) -> Seq2SeqBatch:
        read, said = self._sides(split, plan.pairs(rows))
        # Exactly as wide as the longest: of short texts, a few columns of padding would be a good part of the work.
        widths = read.tokens.shape[1], said.tokens.shape[1]
        batch = seq2seq_batch(read, said, self.tokenizer.decoder_start, self._pad, widths)
        return replace(batch, stands_for=rows.stop - rows.start)

    def _sides(self, split: Split, pairs: np.ndarray) -> tuple[Sequences, Sequences]:
        """The sources and the targets of these pairs, Int64[B]."""
        columns = [self._records[split].ragged(side) for side in SIDES]
        lengths = [column.lengths[pairs] for column in columns]
        read, said = (
            stacked(column.gather(column.starts[pairs], own), own, self._pad) for column, own in zip(columns, lengths)
        )
        return read, said

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.facts[split]["pairs"]:
            reason = "set held_out above 0, or give validation files" if split == "held_out" else "give more pairs"
            raise UserError(f"the {split} split of the data is empty: {reason}")
