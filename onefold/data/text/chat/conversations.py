"""Conversations as training data: messages from a file, or docstring → code pairs from sources; answers are learned."""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
from onefold.data.text.chat.docstrings import pairs
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.messages import Message, Row, encode, encode_chat, scripts, with_chat
from onefold.data.text.chat.templates import TEMPLATES
from onefold.data.text.dataset import Dataset, SplitWriter
from onefold.data.text.documents import Corpus, LoadTokenizer, Source, TrainBPE, one_or_many
from onefold.data.text.tokenizers.tokenizer import Tokenizer

TOGETHER = 256  # conversations encoded at once: bounds memory, still feeds every core
LISTED = 10  # mistakes that are kept to be told


class ChatData(Config):
    """Conversations of which the assistant's words are learned: `path`, see files.py, or `pairs` from sources.

    With the same held_out and split_seed as the pre-training text, pairs of its held-out files are held out, too.
    """

    kind: Literal["chat"] = "chat"
    path: str | None = None
    pairs: tuple[Source, ...] = ()
    context: int = Field(default=512, ge=1)
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] | None = None  # None: that of the model it fine-tunes
    held_out: float = Field(default=0.05, ge=0, le=0.5)
    validation: str | None = None  # a file to evaluate on instead of conversations held out
    split_seed: int = Field(default=0, ge=0)
    template: str | None = None  # a name of templates.py, or a file with Jinja; None: that of the model
    learn: Literal["answers", "last"] = "answers"  # all of them, or the last one of each conversation
    skip_bad: bool = False  # leave out rows that are not well-formed, and tell how many, instead of stopping
    too_long: Literal["shorten", "skip"] = "shorten"  # shorten: forget the oldest turns, but not the system's

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return one_or_many(value)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.path is None and not self.pairs:
            raise PydanticCustomError("nothing", "needs path (a file of conversations) or pairs (Python sources)")
        return self

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> Dataset:
        """The conversations as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with; where it has no chat template, or another is given, it takes that with
        its special tokens, so `dataset.tokenizer` may be larger. keep: as in TextData. Raises UserError when there is
        no conversation, or one is not well-formed.
        """
        what = {
            **self.to_dict(),
            "pairs": [(s.path, s.field) for s in self.pairs],
            "tokenizer": tokenizer.digest if tokenizer else self.tokenizer and self.tokenizer.to_dict(),
        }
        file = self.template if self.template not in TEMPLATES else None
        paths = [self.path, *(s.path for s in self.pairs), self.validation, file]
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
        before, hashed = tokenizer.special, hashlib.blake2b(digest_size=8)
        tokenizer = with_chat(tokenizer, self.template)
        if new := [name for name in tokenizer.special if name not in before]:
            say(f"the chat template brings tokens that are new to the model, and learned from nothing: {' '.join(new)}")
        fitter = Fitter(tokenizer, self.context, self.too_long, self.learn, self.skip_bad)
        with SplitWriter(folder, tokenizer, learned=True) as out, Progress("encoding conversations") as bar:
            for fitted in fitter.fit(self.conversations(fitter.refuse if self.skip_bad else None)):
                hashed.update(json.dumps(fitted.messages, sort_keys=True).encode())
                for row in fitted.rows:
                    out.add(
                        fitted.split,
                        row.size,
                        name=fitted.name,
                        source=0,
                        text=row.text,
                        tokens=row.ids,
                        learned=row.learned,
                    )
                bar.update()
        if not out.facts["train"]["documents"]:
            raise UserError(f"no conversation to learn from in {self._names()}; {fitter.note}")
        facts = {
            "hash": hashed.hexdigest(),
            "note": fitter.note,
            "skipped": fitter.skipped,
            "shortened": fitter.shortened,
            "bad": fitter.bad,
        }
        return tokenizer, {**facts, **out.facts, "vocab": tokenizer.size}

    def conversations(
        self, bad: Callable[[UserError], None] | None = None
    ) -> Iterator[tuple[SplitName, str, Sequence[Message]]]:
        """(split, where from, messages) of all conversations. bad: see `read_conversations`."""
        own: set[int] = set()
        if self.validation:
            for name, messages in read_conversations(self.validation, bad):
                own.add(self._key(messages))
                yield "held_out", name, messages
        if self.path:
            keys, sizes = array("Q"), array("Q")
            for _, messages in read_conversations(self.path, None if bad is None else lambda error: None):
                keys.append(self._key(messages))
                sizes.append(len(_words(messages)))
            share = 0 if self.validation else self.held_out
            split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), share)
            first = len(keys) * (1 - split.tail)  # of the last ones, which are held out when there are very few
            for n, (name, messages) in enumerate(read_conversations(self.path, bad)):
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
        bad = (lambda error: None) if self.skip_bad else None
        return self.tokenizer.build(_words(talk) for split, _, talk in self.conversations(bad) if split == "train")

    def _names(self) -> str:
        return ", ".join([*([self.path] if self.path else []), *(s.path for s in self.pairs)])


@dataclass(frozen=True)
class Fitted:
    """A conversation and its rows: one, but for templates that rewrite earlier turns; none where it does not fit."""

    split: SplitName
    name: str
    messages: Sequence[Message]
    rows: list[Row]
    length: int  # tokens of its longest row before it was shortened


@dataclass
class Fitter:
    """Encodes conversations into rows of at most `context` targets, and counts what did not fit."""

    tokenizer: Tokenizer
    context: int
    too_long: Literal["shorten", "skip"] = "shorten"
    learn: Literal["answers", "last"] = "answers"
    skip_bad: bool = False
    shortened: int = 0
    skipped: int = 0
    bad: int = 0
    mistakes: list[str] = field(default_factory=list)  # the first of those

    def fit(self, conversations: Iterable[tuple[SplitName, str, Sequence[Message]]]) -> Iterator[Fitted]:
        """The rows of each conversation, many encoded at a time. Raises UserError where a template refuses one."""
        waiting = iter(conversations)
        while some := list(islice(waiting, TOGETHER)):
            written = []
            for split, name, messages in some:
                messages = _only_last(messages) if self.learn == "last" else messages
                try:
                    written.append((split, name, messages, scripts(messages, self.tokenizer)))
                except UserError as error:
                    self._refuse_or_raise(UserError(f"{name}: {error}"))
            rows = iter(encode([one for *_, found in written for one in found], self.tokenizer))
            for split, name, messages, found in written:
                mine = list(islice(rows, len(found)))
                length = max(len(row.ids) for row in mine)
                if length - 1 > self.context:
                    messages, mine = self._shortened(messages)
                yield Fitted(split, name, messages, mine, length)

    def refuse(self, error: UserError) -> None:
        """Count a row that is not well-formed."""
        self.bad += 1
        if len(self.mistakes) < LISTED:
            self.mistakes.append(str(error))

    def _refuse_or_raise(self, error: UserError) -> None:
        if not self.skip_bad:
            raise error
        self.refuse(error)

    def _shortened(self, messages: Sequence[Message]) -> tuple[Sequence[Message], list[Row]]:
        """What the system says and as many of the latest turns as fit, a user's turn first; no rows: none fits."""
        head = [m for m in messages if m["role"] in ("system", "developer")]
        begins = [n for n in range(len(head) + 1, len(messages)) if messages[n]["role"] == "user"]
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)), default=0)
        begins = [n for n in begins if n < last] if self.too_long == "shorten" else []

        def rest(begin: int) -> Sequence[Message]:
            return [*head, *messages[begin:]]

        def fits(begin: int) -> bool:
            return len(encode_chat(rest(begin), self.tokenizer)[0]) - 1 <= self.context

        place = bisect_left(begins, True, key=fits)  # the fewer turns, the fewer tokens
        if place == len(begins):
            self.skipped += 1
            return messages, []
        self.shortened += 1
        rows = encode(scripts(rest(begins[place]), self.tokenizer), self.tokenizer)
        return rest(begins[place]), [row for row in rows if len(row.ids) - 1 <= self.context]

    @property
    def note(self) -> str:
        told = [(self.shortened, "shortened to their latest turns"), (self.skipped, "too long and skipped")]
        fitting = ", ".join(f"{n:,} {what}" for n, what in told if n) or f"all fit the context of {self.context}"
        return fitting + (f"; {self.bad:,} left out, the first: {self.mistakes[0]}" if self.bad else "")


def _only_last(messages: Sequence[Message]) -> Sequence[Message]:
    """The same where nothing is learned but the last answer that is."""
    last = max(n for n, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1))
    return [{**m, "weight": 0} if m["role"] == "assistant" and n != last else m for n, m in enumerate(messages)]


def _words(messages: Sequence[Message]) -> str:
    return "\n".join(str(m["content"]) for m in messages)
