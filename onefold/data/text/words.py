"""Text as a stream of words: sources → vocabulary with counts → numbers on disk, read by memory map.

Two passes over the text, so that memory holds a vocabulary and a megabyte of text, however long the corpus is.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.prepared import folder_name, prepared
from onefold.data.sources import Skipped, read, stamp
from onefold.data.text.documents import Source, Sources, one_or_many

WORD = re.compile(r"\w+(?:['’]\w+)*")
SPACE = re.compile(r"\s")
PIECE = 1 << 20  # characters that are taken apart at once
DISTINCT = 20_000_000  # words that are counted at once; above, the rarest are forgotten
END = -1  # between two texts: no window reaches over it
STREAM, COUNTS = "words.int32", "words.txt"


class WordData(Config):
    """Documents as words, each of which stands for itself."""

    kind: Literal["words"] = "words"
    sources: Sources = (Source(),)
    split: Literal["words", "space"] = "words"  # runs of letters and digits; or what spaces part, in a tokenised corpus
    lower: bool = True
    ends: Literal["document", "line"] = "document"  # what a window does not reach beyond
    min_count: int = Field(default=5, ge=1)  # rarer words are left out before windows are laid
    vocab: int | None = Field(default=None, ge=1)  # the most frequent words at most; None: all

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return one_or_many(value)

    @field_validator("sources")
    @classmethod
    def _no_weights(cls, value: Sources) -> Sources:
        if not value or any(source.weight is not None for source in value):
            text = "words are read as often as they stand there: leave out the weight" if value else "needs a source"
            raise PydanticCustomError("weights", "{text}", {"text": text})
        return value

    def prepare(self, folder: Path, keep: bool = False) -> "WordCorpus":
        """The words of these documents, made in a subfolder of `folder` or found there from an earlier time.

        keep: go on with what was prepared even where the sources have changed since. Raises UserError when there is no
        text, or no word is frequent enough.
        """
        what = {**self.to_dict(), "sources": [(s.path, s.field) for s in self.sources]}
        target = Path(folder) / folder_name("words", what)
        stamps = {source.path: stamp(source.path) for source in self.sources}
        new = prepared(target, stamps, keep, self._build)
        corpus = WordCorpus.open(target)
        if new:
            say(f"{corpus.facts['words']:,} words, {len(corpus.vocabulary):,} different ones")
        return corpus

    def _build(self, folder: Path) -> "tuple[Vocabulary, dict[str, Any]]":
        skipped, distinct, hashed = Skipped(), Counter[str](), hashlib.blake2b(digest_size=8)
        forgotten = documents = size = 0
        with Progress("counting words", unit="documents") as bar:
            for document in self._documents(skipped):
                documents += 1
                for text in pieces(document):
                    data = text.encode()
                    hashed.update(data)
                    size += len(data)
                    distinct.update(self._words(text))
                if len(distinct) > DISTINCT:
                    forgotten += 1
                    distinct = Counter({word: n for word, n in distinct.items() if n > forgotten})
                bar.update()
        vocabulary = Vocabulary.of(distinct, max(self.min_count, forgotten + 1), self.vocab)
        if not vocabulary.words:
            raise UserError(f"no word occurs {self.min_count} times: give more text, or a smaller data.min_count")
        place = {word: i for i, word in enumerate(vocabulary.words)}.get
        with Progress("numbering words", documents, "documents") as bar, (folder / STREAM).open("wb") as out:
            for document in self._documents(Skipped()):
                for text in document.splitlines() if self.ends == "line" else (document,):
                    for piece in pieces(text):
                        np.array([i for w in self._words(piece) if (i := place(w)) is not None], "<i4").tofile(out)
                    np.array([END], "<i4").tofile(out)
                bar.update()
        facts = {"hash": hashed.hexdigest(), "documents": documents, "bytes": size, "skipped": str(skipped)}
        return vocabulary, facts | {"words": int(vocabulary.counts.sum()), "different": len(vocabulary.words)}

    def _documents(self, skipped: Skipped) -> Iterator[str]:
        for source in self.sources:
            for document in read(source.path, source.field, skipped):
                yield document.text

    def _words(self, text: str) -> list[str]:
        text = text.lower() if self.lower else text
        return text.split() if self.split == "space" else WORD.findall(text)


def pieces(text: str) -> Iterator[str]:
    """A text in parts of about a megabyte, cut between words."""
    start = 0
    while start < len(text):
        space = SPACE.search(text, start + PIECE)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


@dataclass(frozen=True)
class Vocabulary:
    """Words and how often each occurs, the most frequent first."""

    words: list[str]
    counts: np.ndarray  # int64 [V]

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def of(cls, counts: "Counter[str]", min_count: int, most: int | None) -> Self:
        """Equal counts in the order of the alphabet, so that the same text gives the same numbers."""
        kept = sorted(((-n, word) for word, n in counts.items() if n >= min_count))[:most]
        return cls([word for _, word in kept], np.array([-n for n, _ in kept], np.int64))

    def save(self, folder: Path) -> None:
        """A line for each: word, space, count; as word2vec's tools have it."""
        lines = (f"{word} {n}\n" for word, n in zip(self.words, self.counts.tolist()))
        (folder / COUNTS).write_text("".join(lines), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        rows = [line.rsplit(" ", 1) for line in (folder / COUNTS).read_text("utf-8").split("\n")[:-1]]
        return cls([word for word, _ in rows], np.array([int(n) for _, n in rows], np.int64))


@dataclass(frozen=True)
class WordCorpus:
    """A prepared corpus: `stream` is its words by number, with END between texts."""

    vocabulary: Vocabulary
    stream: np.ndarray  # int32, memory-mapped
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        stream = np.memmap(folder / STREAM, "<i4", "r")
        return cls(Vocabulary.load(folder / PROCESSOR), stream, read_facts(folder))
