"""What is known of a text, by task: its class, a number, a tag for each word, or where an answer stands.

Each task says which columns of a table it takes, what a row of them means, and what a model is asked about it.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onefold.core.batch import UNASKED
from onefold.core.errors import UserError
from onefold.data.columns import Column
from onefold.data.prepared import Split
from onefold.data.split import content_hash
from onefold.data.tables import LABELS, label_name
from onefold.data.text.frames import Frame, first_pieces, frames
from onefold.data.text.tokenizers.tokenizer import Tokenizer

TEXTS = ("text", "sentence", "content", "review", "sentence1", "premise", "question")
OUTSIDE = "O"  # the tag of words that belong to nothing


@dataclass(frozen=True)
class Example:
    """A row: where it stands, its text or two texts, and what is known of them in plain values.

    label: a class's name; a number; [[word, tag], …] of the words that the text is joined from by blanks; or
    [[answer, first character], …], none where the second text does not answer the first.
    """

    name: str
    text: str
    second: str
    label: Any
    split: Split | None = None

    def key(self, seed: int) -> int:
        return content_hash(f"{self.text}\0{self.second}", seed)

    def words(self) -> tuple[list[str], list[int]]:
        """The words of a tagged text, and the character at which each begins."""
        words = [word for word, _ in self.label]
        ends = np.cumsum([len(word) + 1 for word in words])
        return words, [0, *ends[:-1].tolist()]


class Task(ABC):
    """One of the four. `usual`: what its three columns are mostly called: the text, the second text, the label."""

    usual: ClassVar[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = (TEXTS, (), LABELS)
    columns: ClassVar[Mapping[str, Column]] = {"label": Column("int32")}
    model: ClassVar[Mapping[str, Any]]  # what the model's config must say

    @abstractmethod
    def parse(
        self, text: Any, second: Any, label: Any, names: Sequence[str] | None, place: str
    ) -> tuple[str, str, Any]:
        """(text, second text, label) of a row as an Example has them; names: of the numbers in the label column.

        Raises UserError that begins with `place`.
        """

    @abstractmethod
    def names(self, label: Any) -> set[str]:
        """Of the classes in an example's label."""

    def known(self, example: Example, classes: Sequence[str]) -> None:
        """Raises UserError where an example has a class that is not among these."""
        if strange := sorted(self.names(example.label) - set(classes)):
            few = f"{', '.join(classes[:6])}{', …' if len(classes) > 6 else ''}"
            raise UserError(f"{example.name}: no model learned the label {strange[0]!r}; known are {few}")

    def order(self, names: set[str]) -> list[str]:
        """The classes as a model numbers them."""
        return sorted(names, key=_natural)

    @abstractmethod
    def records(
        self, examples: Sequence[Example], classes: Sequence[str], tokenizer: Tokenizer, length: int, overlap: int
    ) -> Iterator[list[dict[str, Any]]]:
        """Of each example what is read of it (`tokens`, `types`) and asked (`columns`): one record, or several."""

    @abstractmethod
    def targets(self, values: Mapping[str, np.ndarray], real: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
        """Of a batch whose records have these values in `columns`, one after another. real: Bool[B, T], no padding."""

    def card(self, labels: Sequence[Any]) -> dict[str, Any]:
        """What a model that learned from examples with these labels must remember to be understood."""
        return {}


class _OfTexts(Task):
    """Something is known of a text, or a pair of texts, as a whole; of long ones the end is not read."""

    model = {"task": "sequence", "pooler": True}

    def parse(self, text, second, label, names, place):
        value = self.value(label, names, place)
        _need_text(text, "text", place, empty=True)
        _need_text(second or "", "second text", place, empty=True)
        return text, second or "", value

    @abstractmethod
    def value(self, label: Any, names: Sequence[str] | None, place: str) -> Any: ...

    def records(self, examples, classes, tokenizer, length, overlap):
        seconds = [example.second for example in examples] if any(example.second for example in examples) else None
        framed = tokenizer.encode_framed([example.text for example in examples], seconds, length)
        place = {name: i for i, name in enumerate(classes)}
        for example, (tokens, types) in zip(examples, framed):
            label = example.label
            yield [{"tokens": tokens, "types": types, "label": place[label] if classes else label}]


class Sequences(_OfTexts):
    def value(self, label, names, place):
        if (name := label_name(label, names, place)) is None:
            raise UserError(f"{place}: no label; mend or delete this row")
        return name

    def names(self, label):
        return {label}

    def targets(self, values, real, facts):
        return np.eye(len(facts["classes"]), dtype=np.float32)[values["label"]]


class Numbers(_OfTexts):
    """Regression: the model's only output is the number, less the mean, in standard deviations of those learned."""

    columns = {"label": Column("float32")}

    def value(self, label, names, place):
        try:
            value = math.nan if isinstance(label, bool) else float(label)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{place}: {label!r} is no number; mend or delete this row")
        return value

    def names(self, label):
        return set()

    def targets(self, values, real, facts):
        mean, deviation = facts["card"]["numbers"]
        return ((values["label"] - mean) / deviation)[:, None].astype(np.float32)

    def card(self, labels):
        return {"numbers": [float(np.mean(labels)), float(np.std(labels)) or 1.0]}


class Tags(Task):
    """A tag for each word. A word's first piece carries it; nothing is asked of the others (arXiv 1810.04805, 5.3)."""

    usual = (("tokens", "words", "text"), (), ("tags", "ner_tags", "pos_tags", "labels", "label"))
    columns = {"tags": Column("int32", ragged=True)}
    model = {"task": "token", "pooler": False}

    def parse(self, text, second, label, names, place):
        words, tags = (value.split() if isinstance(value, str) else value for value in (text, label))
        for what, values in (("words", words), ("tags", tags)):
            if not isinstance(values, list) or not values:
                raise UserError(f"{place}: no {what}: a list of them, or text with blanks between them; mend this row")
        if len(words) != len(tags):
            raise UserError(f"{place}: {len(words)} words and {len(tags)} tags; each word must have one")
        found = []
        for word, tag in zip(words, tags):
            name = label_name(tag, names, place)
            if name is None or not isinstance(word, str) or not word.strip():
                raise UserError(f"{place}: {'no tag' if name is None else 'no word'} at place {len(found) + 1}")
            found.append([word, name])
        return " ".join(words), "", found

    def names(self, label):
        return {tag for _, tag in label}

    def order(self, names):
        return sorted(names, key=lambda name: (name != OUTSIDE, name.partition("-")[2], _natural(name)))

    def records(self, examples, classes, tokenizer, length, overlap):
        number = {name: i for i, name in enumerate(classes)}
        every = frames(tokenizer, [example.text for example in examples], None, length, overlap)
        for example, windows in zip(examples, every):
            tags = [[UNASKED] * len(window.ids) for window in windows]
            for piece, (_, tag) in zip(first_pieces(windows, example.words()[1]), example.label):
                if piece is not None:
                    tags[piece[0]][piece[1]] = number[tag]
            yield [{"tokens": w.ids, "types": w.types, "tags": own} for w, own in zip(windows, tags)]

    def targets(self, values, real, facts):
        laid = np.full(real.shape, UNASKED, np.int64)
        laid[real] = values["tags"]
        return laid


class Answers(Task):
    """Where in the second text the answer to the first stands; of windows without it, the first token is the answer."""

    usual = (("question", "query"), ("context", "passage", "paragraph", "text"), ("answers", "answer"))
    columns = {"span": Column("int32", (2,))}
    model = {"task": "span", "pooler": False}

    def parse(self, text, second, label, names, place):
        _need_text(text, "question", place)
        _need_text(second, "context", place)
        return text, second, [_found(answer, start, second, place) for answer, start in _answers(label, place)]

    def names(self, label):
        return set()

    def order(self, names):
        return ["start", "end"]

    def records(self, examples, classes, tokenizer, length, overlap):
        questions = [example.text for example in examples]
        every = frames(tokenizer, [example.second for example in examples], questions, length, overlap)
        for example, windows in zip(examples, every):
            if not windows:
                raise UserError(f"{example.name}: the question leaves no room for its context in {length} tokens")
            answer, start = example.label[0] if example.label else ("", 0)
            yield [{"tokens": w.ids, "types": w.types, "span": span_of(w, start, start + len(answer))} for w in windows]

    def targets(self, values, real, facts):
        return values["span"].astype(np.int64)


TASKS: Mapping[str, Task] = {"sequence": Sequences(), "token": Tags(), "span": Answers(), "regression": Numbers()}


def span_of(window: Frame, start: int, end: int) -> tuple[int, int]:
    """The first and the last token of characters [start, end), or twice the first one where not all are in it."""
    inside = [(i, place) for i, place in enumerate(window.places) if place is not None]
    if start == end or not inside or start < inside[0][1][0] or end > inside[-1][1][1]:
        return 0, 0
    first = bisect_right(inside, start, key=lambda item: item[1][1])  # the first that ends behind the start
    last = bisect_right(inside, end - 1, key=lambda item: item[1][0]) - 1
    return inside[min(first, last)][0], inside[last][0]


def _answers(label: Any, place: str) -> Iterator[tuple[Any, Any]]:
    """(answer, where it begins or None) of what stands in a column: SQuAD's shapes, a text, or nothing."""
    if label is None or label == "":
        return
    if isinstance(label, Mapping) and isinstance(label.get("text"), list):
        starts = label.get("answer_start", label.get("start")) or [None] * len(label["text"])
        label = [{"text": text, "answer_start": start} for text, start in zip(label["text"], starts)]
    for answer in label if isinstance(label, list) else [label]:
        if isinstance(answer, str):
            yield answer, None
        elif isinstance(answer, Mapping):
            yield answer.get("text"), answer.get("answer_start", answer.get("start"))
        else:
            raise UserError(f"{place}: an answer must be a text, or have text and answer_start")


def _found(answer: Any, start: Any, context: str, place: str) -> list[Any]:
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"{place}: an answer without text; where there is none, leave the list of answers empty")
    start = context.find(answer) if start is None else start
    if not isinstance(start, int) or start < 0 or context[start : start + len(answer)] != answer:
        where = "" if start == -1 else f" at character {start}"
        raise UserError(f"{place}: the answer {answer[:40]!r} does not stand in its context{where}")
    return [answer, start]


def _need_text(value: Any, what: str, place: str, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise UserError(f"{place}: no {what}; mend or delete this row")


def _natural(name: str) -> tuple[float, str]:
    """Numbers by their size, before names."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
