"""Conversations as training data: messages from a file, or docstring → code pairs from sources; answers are learned."""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.prepared import SPLITS, folder_name, prepared
from onefold.data.prepared import Split as SplitName
from onefold.data.sources import Skipped, read, stamp
from onefold.data.split import choose, content_hash
from onefold.data.text.chat import Message, encode_chat, examples, read_conversations, render, with_chat
from onefold.data.text.dataset import Dataset, SplitWriter
from onefold.data.text.documents import Corpus, LoadTokenizer, Source, TrainBPE, one_or_many
from onefold.data.text.pairs import pairs
from onefold.data.text.tokenizer import Tokenizer


class ChatData(Config):
    """Conversations of which the assistant's words are learned: `path`, a JSONL of messages, or `pairs` from sources.

    With the same held_out and split_seed as the pre-training text, pairs of its held-out files are held out, too.
    """

    kind: Literal["chat"] = "chat"
    path: str | None = None
    pairs: tuple[Source, ...] = ()
    context: int = Field(default=512, ge=1)
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] | None = None  # None: that of the model it fine-tunes
    held_out: float = Field(default=0.05, ge=0, le=0.5)
    validation: str | None = None  # a JSONL to evaluate on instead of conversations held out
    split_seed: int = Field(default=0, ge=0)
    too_long: Literal["shorten", "skip"] = "shorten"  # shorten: forget the oldest turns, but not the system's

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return one_or_many(value)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.path is None and not self.pairs:
            raise PydanticCustomError("nothing", "needs path (a JSONL of messages) or pairs (Python sources)")
        return self

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> Dataset:
        """The conversations as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with; without a chat template it is given one with its special tokens, so
        `dataset.tokenizer` may be larger. keep: as in TextData. Raises UserError when there is no conversation, or
        one is not well-formed.
        """
        what = {
            **self.to_dict(),
            "pairs": [(s.path, s.field) for s in self.pairs],
            "tokenizer": tokenizer.digest if tokenizer else self.tokenizer and self.tokenizer.to_dict(),
        }
        paths = [self.path, *(s.path for s in self.pairs), self.validation]
        stamps = {path: stamp(path) for path in paths if path}
        target = Path(folder) / folder_name("chat", what)
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = Dataset(target, self.context)
        if new:
            train, held_out = (dataset.facts[split]["documents"] for split in ("train", "held_out"))
            say(f"conversations: {train:,} to learn, {held_out:,} held out; {dataset.facts['note']}")
        return dataset

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        if tokenizer is None:
            tokenizer = self._tokenizer()
        tokenizer, hashed = with_chat(tokenizer), hashlib.blake2b(digest_size=8)
        fitter = Fitter(tokenizer, self.context, self.too_long)
        with SplitWriter(folder, tokenizer, learned=True) as out, Progress("encoding conversations") as bar:
            for split, name, messages in self.conversations():
                hashed.update(json.dumps(messages, sort_keys=True).encode())
                for ids, learned in fitter.rows(messages):
                    spelled = tokenizer.decode(np.array(ids)[np.array(learned) > 0])
                    size = len(spelled.encode())
                    out.add(split, size, name=name, source=0, text=fitter.text, tokens=ids, learned=learned)
                bar.update()
        if not out.facts["train"]["documents"]:
            raise UserError(f"no conversation to learn from in {self._names()}; {fitter.note}")
        facts = {
            "hash": hashed.hexdigest(),
            "note": fitter.note,
            "skipped": fitter.skipped,
            "shortened": fitter.shortened,
        }
        return tokenizer, {**facts, **out.facts, "vocab": tokenizer.size}

    def conversations(self) -> Iterator[tuple[SplitName, str, Sequence[Message]]]:
        """(split, where from, messages) of all conversations."""
        own: set[int] = set()
        if self.validation:
            for name, messages in read_conversations(self.validation):
                own.add(self._key(messages))
                yield "held_out", name, messages
        if self.path:
            keys, sizes = array("Q"), array("Q")
            for _, messages in read_conversations(self.path):
                keys.append(self._key(messages))
                sizes.append(len(_words(messages)))
            share = 0 if self.validation else self.held_out
            split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), share)
            first = len(keys) * (1 - split.tail)  # of the last ones, which are held out when there are very few
            for n, (name, messages) in enumerate(read_conversations(self.path)):
                if keys[n] not in own:
                    yield SPLITS[split.whole(keys[n]) or n >= first], name, messages
        if self.pairs:
            yield from self._pairs()

    def _pairs(self) -> Iterator[tuple[SplitName, str, Sequence[Message]]]:
        corpus = Corpus.scan(self.pairs, 0 if self.validation else self.held_out, None, self.split_seed)
        for source in self.pairs:
            for document in read(source.path, source.field, Skipped()):
                train, _ = corpus.split.divide(document.text, content_hash(document.text, self.split_seed))
                border = train.count("\n")  # lines up to here are for training
                for pair in pairs(document):
                    if pair.last_line <= border or pair.first_line > border:
                        yield SPLITS[pair.first_line > border], pair.name, pair.messages

    def _key(self, messages: Sequence[Message]) -> int:
        return content_hash(_words(messages), self.split_seed)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("chat data needs the tokenizer of a model: fine-tune with start=…, or set data.tokenizer")
        return self.tokenizer.build(_words(messages) for split, _, messages in self.conversations() if split == "train")

    def _names(self) -> str:
        return ", ".join([*([self.path] if self.path else []), *(s.path for s in self.pairs)])


@dataclass
class Fitter:
    """Encodes conversations into rows of at most `context` targets, and counts what did not fit."""

    tokenizer: Tokenizer
    context: int
    too_long: Literal["shorten", "skip"]
    shortened: int = 0
    skipped: int = 0
    text: str = field(default="", repr=False)  # of the conversation encoded last, as the model reads it

    def rows(self, messages: Sequence[Message]) -> list[tuple[list[int], list[int]]]:
        """(ids, learned) of each row: one, but for templates that rewrite earlier turns."""
        found = examples(messages, self.tokenizer)
        if any(len(ids) - 1 > self.context for ids, _ in found):
            messages = self._shorter(messages)
            if not messages:
                self.skipped += 1
                return []
            self.shortened += 1
            found = examples(messages, self.tokenizer)
        self.text = render(messages, None, self.tokenizer)
        return found

    def _shorter(self, messages: Sequence[Message]) -> Sequence[Message]:
        """What the system says and as many of the latest turns as fit, a user's turn first; empty: none fits."""
        if self.too_long == "skip":
            return []
        head = [m for n, m in enumerate(messages) if m["role"] in ("system", "developer") and n == 0]
        for begin in range(len(head) + 1, len(messages)):
            rest = messages[begin:]
            if rest[0]["role"] == "user" and any(m["role"] == "assistant" for m in rest):
                ids, learned = encode_chat([*head, *rest], self.tokenizer)
                if len(ids) - 1 <= self.context and any(learned):
                    return [*head, *rest]
        return []

    @property
    def note(self) -> str:
        told = [(self.shortened, "shortened to their latest turns"), (self.skipped, "too long and skipped")]
        return ", ".join(f"{n:,} {what}" for n, what in told if n) or f"all fit the context of {self.context}"


def _words(messages: Sequence[Message]) -> str:
    return "\n".join(str(m["content"]) for m in messages)
