"""Texts that belong together, two by two: documents or tables → pairs → records of two splits → batches.

Pairs come from what stands side by side anyway: a passage and the one behind it, a docstring and its function (cpt,
arXiv 2201.10005, section 2.1), or two columns of a table. A file or row is in one split with all of its pairs.
"""

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from onefold.core.batch import Batch, PairedTextBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.ahead import to_tensor
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.order import Epoch, order, plan_epoch
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import STDLIB, Document, Skipped, read, stamp
from onefold.data.split import choose, content_hash
from onefold.data.tables import TABLES, needed_column, read_table
from onefold.data.text.chat.docstrings import pairs as functions
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.tokenizers.tokenizer import Tokenizer

TOGETHER = 1024  # pairs tokenized at once
COLUMNS = 8  # of a batch, a multiple of this: fewer different shapes
MIN_CHARACTERS = 20  # of a passage
FIRST = ("query", "question", "anchor", "first", "sentence1", "title")  # usual names of columns
SECOND = ("document", "passage", "positive", "second", "sentence2", "answer", "code", "text")

Delimiters = tuple[tuple[str, str], tuple[str, str]]  # before and behind the first text, and the second one
TextPair = tuple[str, str, str]  # its name, and the two texts


class Docstrings(Config):
    """What a docstring says, and the Python function that it stands in."""

    kind: Literal["docstrings"] = "docstrings"

    def of(self, document: Document) -> Iterator[TextPair]:
        for pair in functions(document):
            yield pair.name, pair.docstring, pair.code


class Neighbours(Config):
    """Passages of about so many characters, whole paragraphs or lines of a document, each with the one behind it."""

    kind: Literal["neighbours"] = "neighbours"
    characters: int = Field(default=400, ge=MIN_CHARACTERS)

    def of(self, document: Document) -> Iterator[TextPair]:
        """No passage is in two pairs."""
        passages = list(_passages(document.text, self.characters))
        for n in range(0, len(passages) - 1, 2):
            yield f"{document.name}#{n + 1}", passages[n], passages[n + 1]


class Columns(Config):
    """Two columns of a table (.csv, .tsv, .jsonl, .parquet); None: by their usual names, as query and document."""

    kind: Literal["columns"] = "columns"
    first: str | None = None
    second: str | None = None


class ContrastiveTextData(Config):
    """Pairs of texts for the contrastive objective, from text or from a table."""

    kind: Literal["contrastive_text"] = "contrastive_text"
    path: str = STDLIB
    pairs: Annotated[Docstrings | Neighbours | Columns, Slot()] = Neighbours()
    context: int = Field(default=128, ge=4)  # tokens of either text, those around it included; the end is cut off
    delimiters: Delimiters | None = None  # what stands around texts; None: what the tokenizer puts there
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] | None = None  # None: that of the model it begins with
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share of the files or rows
    validation: str | None = None  # a source to evaluate on instead
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "ContrastiveDataset":
        """The pairs as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with. keep: as in TextData. Raises UserError when there are no pairs, or no
        tokenizer.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("contrastive-text", what)
        stamps = {path: stamp(path) for path in (self.path, self.validation) if path}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = ContrastiveDataset(target, self.context, self.delimiters)
        if new:
            train, held_out = (dataset.facts[split] for split in SPLITS)
            say(
                f"{train['pairs']:,} pairs of texts to learn from, {held_out['pairs']:,} held out; "
                f"{dataset.facts['copies']:,} left out, since one of their texts was there before"
            )
        return dataset

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        if tokenizer is None:
            if self.tokenizer is None:
                raise UserError("pairs of texts need a tokenizer: begin with a model (start=…), or set data.tokenizer")
            texts = (text for split, pair in self._pairs() if split == "train" for text in pair[1:])
            tokenizer = self.tokenizer.build(texts)
        token = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
        columns = {name: Column("text") for name in ("name", "first", "second")}
        columns |= {name: Column(token, ragged=True) for name in ("tokens", "others")}
        facts: dict[Split, dict[str, int]] = {split: {"pairs": 0, "tokens": 0} for split in SPLITS}
        hashed, seen, copies = hashlib.blake2b(digest_size=8), _Seen(), 0
        around = self.delimiters or (None, None)
        with (
            RecordsWriter(folder / "train", columns) as train,
            RecordsWriter(folder / "held_out", columns) as held_out,
            Progress("tokenizing", None, "pairs") as bar,
        ):
            for some in _portions(self._pairs()):
                new = [(split, pair) for split, pair in some if seen.add(pair)]
                copies += len(some) - len(new)
                sides = [
                    encode_texts(tokenizer, [pair[side] for _, pair in new], self.context, around[side - 1])
                    for side in (1, 2)
                ]
                for (split, pair), tokens, others in zip(new, *sides):
                    hashed.update("\0".join((split, *pair)).encode())
                    named = dict(zip(("name", "first", "second"), pair))
                    (train if split == "train" else held_out).add(**named, tokens=tokens, others=others)
                    facts[split]["pairs"] += 1
                    facts[split]["tokens"] += len(tokens) + len(others)
                bar.update(len(some))
        if not facts["train"]["pairs"]:
            raise UserError(f"{self.path} holds no pairs ({self.pairs.kind}) to learn from")
        return tokenizer, {"hash": hashed.hexdigest(), **facts, "copies": copies, "vocab": tokenizer.size}

    def _pairs(self) -> "Iterator[tuple[Split, TextPair]]":
        """Every pair in its split; those of `validation` come last."""
        keys, sizes = array("Q"), array("Q")
        for item in _items(self.path, self.pairs):
            keys.append(content_hash(item.text, self.split_seed))
            sizes.append(len(item.text.encode()))  # as text is split, so that the same files are held out
        validation = list(_items(self.validation, self.pairs)) if self.validation else []
        own = {content_hash(item.text, self.split_seed) for item in validation}
        split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), 0 if own else self.held_out)
        for key, item in zip(keys, _items(self.path, self.pairs), strict=True):
            if key in own:
                continue
            found = list(item.pairs())
            last = len(found) * (1 - split.tail)  # where files are few, the end of each is held out
            for n, pair in enumerate(found):
                yield SPLITS[split.whole(key) or n >= last], pair
        for item in validation:
            for pair in item.pairs():
                yield "held_out", pair


class ContrastiveDataset:
    """What `prepare` returns."""

    batch: type[Batch] = PairedTextBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, context: int, delimiters: Delimiters | None):
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self.context, self.delimiters = context, delimiters
        self._records = {split: Records(folder / split) for split in SPLITS}
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, int] | None = None
    ) -> Loader[Epoch, PairedTextBatch]:
        """Endless batches of pairs drawn at random, `rows` over all processes together.

        Every pair comes once in an epoch; the last batch of one is filled up with pairs that it began with. Raises
        UserError when a batch would hold a pair twice, which then would be its own negative.
        """
        count = self._check(split)
        if rows > count:
            raise UserError(f"a batch of {rows} compares different pairs, and there are {count}: make it smaller")
        plan = partial(plan_epoch, count, rows, "random", seed)
        return Loader(plan, partial(self._batch, split), rows, rank, world, state)

    def evaluation(self, split: Split, rows: int) -> Evaluation[Epoch, PairedTextBatch]:
        """Every pair of the split once, always in the same order, of which any beginning is a fair sample."""
        count = self._check(split)
        return Evaluation(Epoch(0, order(count, "random"), rows), partial(self._batch, split), count, rows)

    def longest(self, rows: int) -> PairedTextBatch:
        """The longest pairs to learn from: what memory has to hold."""
        lengths = sum(self._records["train"].ragged(side).lengths for side in ("tokens", "others"))
        order = np.argsort(lengths)[-rows:]
        return self._batch("train", Epoch(0, np.resize(order, rows), rows), slice(0, rows))

    def size(self, split: Split) -> int:
        """Tokens of both sides."""
        return self.facts[split]["tokens"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that the objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config for these texts.

        Errors: UserError when it is no embedder, or these tokens are not its own.
        """
        trunk = getattr(model, "trunk", None)
        if trunk is None:
            raise UserError(f"pairs of texts need a model of kind embedder, not {getattr(model, 'kind', 'another')}")
        trunk = fit_tokens(trunk, self.tokenizer, self.context, grow)
        if model.delimiters not in (None, self.delimiters):
            say(f"the model's delimiters {model.delimiters} are left out, as the data have others: data.delimiters")
        return model.but({"trunk": trunk, "delimiters": self.delimiters})

    def texts(self, split: Split) -> Iterator[TextPair]:
        """(name, first, second) of each pair."""
        records = self._records[split]
        for i in range(len(records)):
            yield str(records["name"][i]), str(records["first"][i]), str(records["second"][i])

    def _batch(self, split: Split, epoch: Epoch, places: slice) -> PairedTextBatch:
        records, rows = self._records[split], epoch.order[places]
        # The longest last, so that chunks of a large batch are of like lengths; within a batch the order says nothing.
        rows = rows[np.argsort(records.ragged("others").lengths[rows], kind="stable")]
        tokens, lengths = self._laid(records, "tokens", rows)
        others, other_lengths = self._laid(records, "others", rows)
        return PairedTextBatch(
            tokens=to_tensor(tokens),
            lengths=to_tensor(lengths),
            others=to_tensor(others),
            other_lengths=to_tensor(other_lengths),
        )

    def _laid(self, records: Records, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of some records, padded, and how many they are."""
        column = records.ragged(name)
        starts, lengths = column.starts[rows], column.lengths[rows]
        width = min(-(-int(lengths.max()) // COLUMNS) * COLUMNS, self.context)
        real = np.arange(width) < lengths[:, None]
        laid = np.full(real.shape, self._pad, np.int64)
        laid[real] = column.gather(starts, lengths)  # row after row, as they lie
        return laid, lengths.astype(np.int64)

    def _check(self, split: Split) -> int:
        """How many pairs there are."""
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.facts[split]["pairs"]:
            raise UserError(f"the {split} split of the data is empty: give more text, or another held_out")
        return self.facts[split]["pairs"]


def read_pairs(path: str, pairs: Docstrings | Neighbours | Columns) -> Iterator[TextPair]:
    """All pairs of a source, in order."""
    for item in _items(path, pairs):
        yield from item.pairs()


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, around: tuple[str, str] | None = None
) -> list[list[int]]:
    """The ids of each text, at most `length`, of longer ones the beginning.

    around: strings that stand before and behind it, as tokens of their own; None: what the tokenizer puts there.
    """
    if around is None:
        return [ids for ids, _ in tokenizer.encode_framed(texts, length=length)]
    before, behind = (tokenizer.encode(string) for string in around)
    room = length - len(before) - len(behind)
    if room < 1:
        raise UserError(f"the delimiters {around} leave no room in a context of {length}")
    return [[*before, *ids[:room], *behind] for ids in tokenizer.encode_batch(texts)]


@dataclass(frozen=True)
class _Item:
    """`text` decides which split it is in."""

    text: str
    pairs: Callable[[], Iterator[TextPair]]


def _items(path: str, pairs: Docstrings | Neighbours | Columns) -> Iterator[_Item]:
    """What is in one split as a whole: documents, or rows of a table."""
    if not isinstance(pairs, Columns):
        for document in read(path, skipped=Skipped()):
            yield _Item(document.text, partial(pairs.of, document))
        return
    file = Path(path).expanduser()
    if not file.is_file() or not set(file.suffixes) & set(TABLES):
        raise UserError(f"{path} is no table: give a file ({', '.join(TABLES)}), or other data.pairs")
    for number, values in read_table(file, partial(_columns, pairs)):
        if not all(isinstance(value, str) and value for value in values):
            raise UserError(f"{file}:{number}: a pair needs two texts; mend or delete this row")
        pair = (f"{file.name}:{number}", *values)
        yield _Item("\0".join(values), partial(iter, [pair]))


class _Seen:
    """Texts that came already, on either side: of two pairs that share one, each would be the other's negative."""

    def __init__(self) -> None:
        self._hashes: tuple[set[int], set[int]] = (set(), set())

    def add(self, pair: TextPair) -> bool:
        """Whether both texts are new."""
        keys = [content_hash(text) for text in pair[1:]]
        if any(key in known for key, known in zip(keys, self._hashes)):
            return False
        for key, known in zip(keys, self._hashes):
            known.add(key)
        return True


def _portions(found: Iterator[Any]) -> Iterator[list[Any]]:
    some = []
    for one in found:
        some.append(one)
        if len(some) == TOGETHER:
            yield some
            some = []
    if some:
        yield some


def _passages(text: str, characters: int) -> Iterator[str]:
    """Consecutive blocks, as many together as make about so many characters; longer ones are cut at ends of lines."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        blocks += [block] if len(block) <= 2 * characters else block.splitlines()
    some: list[str] = []
    for block in blocks:
        some.append(block)
        if sum(map(len, some)) >= characters:
            yield "\n".join(some).strip("\n")
            some = []
    rest = "\n".join(some).strip("\n")
    if len(rest) >= MIN_CHARACTERS:
        yield rest


def _columns(wanted: Columns, known: Sequence[str], where: str) -> tuple[str, str]:
    """The names of the two columns."""
    found: list[str] = []
    for side, given, usual in (("first", wanted.first, FIRST), ("second", wanted.second, SECOND)):
        ask = f"say which holds the {side} texts with data.pairs.{side}=NAME"
        found.append(needed_column(known, where, given, usual, ask, found))
    return found[0], found[1]
