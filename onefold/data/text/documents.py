"""Text as training data: sources → split by file → tokenizer → records."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.facts import read_contents
from onefold.data.prepared import LAYOUT, folder_name, prepared
from onefold.data.sources import STDLIB, Document, Skipped, read, stamp
from onefold.data.split import Split, choose, content_hash
from onefold.data.text.dataset import Dataset, SplitWriter, is_text_store
from onefold.data.text.tokenizers.tokenizer import BATCH_BYTES, CHAT_TOKENS, END_OF_TEXT, SENTINEL, Tokenizer


class TrainBPE(Config):
    """A byte-level BPE tokenizer trained on the training split."""

    kind: Literal["bpe"] = "bpe"
    vocab: int = Field(default=4096, ge=256)  # tokens at most, special ones included
    special: tuple[str, ...] = (END_OF_TEXT, *CHAT_TOKENS)  # the chat tokens are there before anyone needs them
    sentinels: int = Field(default=0, ge=0)  # <extra_id_0> and so on, which name gaps; the first is the last token (T5)
    sample_bytes: int = Field(default=50_000_000, ge=1)  # of a larger corpus, a fair sample of about this size

    def build(self, texts: Iterable[str]) -> Tokenizer:
        tokenizer = Tokenizer.train(texts, self.vocab - self.sentinels, self.special)
        return tokenizer.add_special([SENTINEL.format(i) for i in reversed(range(self.sentinels))])


class LoadTokenizer(Config):
    """A tokenizer that exists: tokenizer.json, vocab.json + merges.txt, a SentencePiece .model, or their folder."""

    kind: Literal["load"] = "load"
    path: str

    def build(self, texts: Iterable[str]) -> Tokenizer:
        return Tokenizer.load(self.path)


class Source(Config):
    """One place that text comes from. weight: its share of the training tokens, relative to the others' weights."""

    path: str = STDLIB
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # None, for all of them: as much as there is
    field: str = "text"  # what holds the text in JSONL, Parquet and datasets

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value


Sources = tuple[Source, ...]


class TextData(Config):
    """Documents to predict token by token."""

    kind: Literal["text"] = "text"
    sources: Sources = (Source(),)
    context: int = Field(default=512, ge=1)
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] = TrainBPE()
    held_out: float = Field(default=0.05, ge=0, le=0.5)  # share of the files
    validation: str | None = None  # a source to evaluate on instead of files held out
    split_seed: int = Field(default=0, ge=0)

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return one_or_many(value)

    @model_validator(mode="after")
    def _weights_for_all(self) -> Self:
        given = [s.weight is not None for s in self.sources]
        if not self.sources or any(given) != all(given):
            text = "give every source a weight, or none" if self.sources else "needs at least one source"
            raise PydanticCustomError("weights", "{text}", {"text": text})
        return self

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> Dataset:
        """The tokens of these documents, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: used instead of the configured one (that of the model to go on with). keep: go on with what was
        prepared even where the sources have changed since. Raises UserError when there is no text, or what was
        prepared is damaged and its source gone.
        """
        what = {
            "sources": [(s.path, s.field) for s in self.sources],
            "tokenizer": tokenizer.digest if tokenizer else self.tokenizer.to_dict(),
            "split": (self.held_out, self.validation, self.split_seed),
        }
        if store := self._store():
            return self._stored(store, tokenizer)
        target = Path(folder) / folder_name("text", what)
        new = prepared(target, self._stamps(), keep, lambda folder: self._build(folder, tokenizer))
        weights = [s.weight for s in self.sources if s.weight is not None]
        dataset = self._open(target, weights if len(weights) > 1 else None)
        if new:
            say(describe(dataset))
        tokens = dataset.facts["train"]["tokens"]
        if tokens < self.context:
            say(f"the training text has only {tokens} tokens, less than one context of {self.context}: rows are padded")
        return dataset

    def build(self, out: str | Path) -> Dataset:
        """Make a store at `out` that other configs may name as their source: tokenizer, split and tokens are kept.

        Raises UserError when something is there already, or there is no text.
        """
        target = Path(out).expanduser()
        if target.exists():
            raise UserError(f"{out} exists already: name another place, or remove it first")
        prepared(target, self._stamps(), False, lambda folder: self._build(folder, None))
        dataset = self._open(target, None)
        say(describe(dataset))
        return dataset

    def _store(self) -> Path | None:
        """The store that is the source, if it is one."""
        stores = [source.path for source in self.sources if is_text_store(source.path)]
        if stores and (len(self.sources) > 1 or self.validation):
            raise UserError(f"{stores[0]} is a store, with a split of its own: give it as the only source")
        return Path(stores[0]).expanduser() if stores else None

    def _stored(self, store: Path, tokenizer: Tokenizer | None) -> Dataset:
        if read_contents(store).get("layout") != LAYOUT:
            raise UserError(f"{store} was made by another version of Onefold: build it again")
        dataset = self._open(store, None)
        if tokenizer and tokenizer.digest != dataset.tokenizer.digest:
            raise UserError(f"{store} was made with another tokenizer than the model's: give the text itself as data")
        return dataset

    def _open(self, folder: Path, shares: Sequence[float] | None) -> Dataset:
        return Dataset(folder, self.context, shares)

    def _stamps(self) -> dict[str, str | None]:
        paths = [s.path for s in self.sources] + ([self.validation] if self.validation else [])
        return {path: stamp(path) for path in paths}

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        corpus = Corpus.scan(self.sources, self.held_out, self.validation, self.split_seed)
        say(corpus.line)
        if tokenizer is None:
            sample = self.tokenizer.sample_bytes if isinstance(self.tokenizer, TrainBPE) else 0
            tokenizer = self.tokenizer.build(corpus.sample(sample))
        start, end = tokenizer.start, tokenizer.end
        with SplitWriter(folder, tokenizer) as out, Progress("tokenizing", corpus.count, "documents") as bar:
            for portion in portions(corpus.parts()):
                encoded = tokenizer.encode_batch([part.text for part in portion])
                for part, ids in zip(portion, encoded):
                    size = len(part.text.encode())
                    document = [start, *ids, end]
                    out.add(part.split, size, name=part.name, source=part.source, text=part.text, tokens=document)
                    bar.update()
        if not out.facts["train"]["tokens"]:
            raise UserError("nothing is left to train on: every document is held out or empty")
        return tokenizer, {**corpus.facts, **out.facts, "vocab": tokenizer.size}


@dataclass(frozen=True)
class Part:
    """A document, or what of it belongs to one split."""

    split: Literal["train", "held_out"]
    source: int
    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents of several sources, scanned once: which are held out, how many bytes, what they hash to."""

    sources: Sources
    validation: str | None
    seed: int
    split: Split
    bytes: int
    facts: dict[str, Any]
    line: str

    @classmethod
    def scan(cls, sources: Sources, held_out: float, validation: str | None, seed: int) -> Self:
        keys, sizes, skipped, hashed = array("Q"), array("Q"), Skipped(), hashlib.blake2b(digest_size=8)
        by_source = []
        for source in sources:
            before = len(sizes)
            for document in read(source.path, source.field, skipped):
                data = document.text.encode()
                keys.append(content_hash(document.text, seed))
                sizes.append(len(data))
                hashed.update(hashlib.blake2b(document.name.encode() + b"\0" + data, digest_size=16).digest())
            by_source.append({"path": source.path, "documents": len(sizes) - before, "bytes": sum(sizes[before:])})
        if validation:
            own = [content_hash(d.text, seed) for d in read(validation, skipped=skipped)]
            split, kind = Split(np.unique(np.array(own, np.uint64))), "own"
        else:
            split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), held_out)
            kind = "ends" if split.tail else "files"
        total = sum(sizes)
        facts = {"hash": hashed.hexdigest(), "documents": len(sizes), "bytes": total, "split": kind}
        names = ", ".join(s.path for s in sources)
        line = f"{names}: {len(sizes):,} documents, {total / 1e6:.2f} MB, corpus hash {facts['hash']}"
        line += f"; {skipped}" if str(skipped) else ""
        line += _copies(sources, np.array(keys, np.uint64))
        line += "; too few files to hold out whole ones, so the end of each is held out" if split.tail else ""
        return cls(
            sources, validation, seed, split, total, {**facts, "sources": by_source, "skipped": str(skipped)}, line
        )

    @property
    def count(self) -> int | None:
        """How many parts there are; None where that is not known beforehand."""
        return self.facts["documents"] if self.facts["split"] == "files" else None

    def parts(self) -> Iterator[Part]:
        """Every document in its split; those of the own validation file come last."""
        for number, document in self._documents():
            key = content_hash(document.text, self.seed)
            if self.validation and self.split.whole(key):
                continue  # it is in the validation file
            train, held_out = self.split.divide(document.text, key)
            if train:
                yield Part("train", number, document.name, train)
            if held_out:
                yield Part("held_out", number, document.name, held_out)
        if self.validation:
            for document in read(self.validation, skipped=Skipped()):
                yield Part("held_out", 0, document.name, document.text)

    def sample(self, budget: int) -> Iterator[str]:
        """Training texts of about `budget` bytes in all, spread evenly over the corpus."""
        share = min(1.0, budget / max(1, self.bytes))
        for part in self.parts():
            key = content_hash(part.text, self.seed + 1)  # not the hash that decides what is held out
            if part.split == "train" and key < share * 2**64:
                yield part.text[:budget]

    def _documents(self) -> Iterator[tuple[int, Document]]:
        for number, source in enumerate(self.sources):
            for document in read(source.path, source.field, Skipped()):
                yield number, document


def _copies(sources: Sources, keys: np.ndarray) -> str:
    """How many documents were there before, and the first of them, as a part of a line; "" where there are none."""
    firsts = np.unique(keys, return_index=True)[1]
    if len(firsts) == len(keys):
        return ""
    again = np.ones(len(keys), bool)
    again[firsts] = False
    documents = (document for source in sources for document in read(source.path, source.field, Skipped()))
    name = next(islice(documents, int(again.argmax()), None)).name
    return f"; {again.sum():,} are copies of others, the first {name}"


def portions(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Consecutive parts with about BATCH_BYTES of text at a time."""
    some: list[Part] = []
    size = 0
    for part in parts:
        some.append(part)
        size += len(part.text)
        if size >= BATCH_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def describe(dataset: Dataset) -> str:
    """One line: what each split holds, and how many bytes a token spells."""
    train, held_out = dataset.facts["train"], dataset.facts["held_out"]
    spelled = train["bytes"] / max(1, train["tokens"])
    return (
        f"training: {train['documents']:,} documents, {train['tokens']:,} tokens ({spelled:.2f} bytes each); held out: "
        f"{held_out['documents']:,} documents, {held_out['tokens']:,} tokens; vocabulary {dataset.tokenizer.size:,}"
    )


def one_or_many(value: Any) -> Any:
    """A single source where a list of them is expected."""
    return (value,) if isinstance(value, str | Path | dict | Source) else value
