"""What people thought of answers, as tables have it: pairs of which one was preferred, or single ones, liked or not.

    {"prompt": "…" or messages, "chosen": …, "rejected": …}              text, messages, or the whole conversation
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}            transcripts that begin alike (HH-RLHF)
    {"prompt": …, "completion": …, "label": true}                       for KTO

Every mistake in a row is told with its file and line.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onefold.core.errors import UserError
from onefold.core.json_lines import valid_text
from onefold.data.tables import TABLES, Pick, read_table
from onefold.data.text.chat.files import conversation
from onefold.data.text.chat.messages import ROLES, Message, encode_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer

Said = str | list[Message]  # plain text, or turns of a conversation
Task = Literal["pairs", "labels"]
Bad = Callable[[UserError], None] | None  # told what is wrong with a row, which is then left out

USUAL: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "messages", "question", "instruction"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "margin": ("margin",),
    "completion": ("completion", "response", "answer"),
    "label": ("label", "liked"),
}  # names of columns
WANTED: dict[Task, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected", "margin"),
    "labels": ("prompt", "completion", "label"),
}
OPTIONAL = ("prompt", "margin")
YES, NO = (True, 1, "1", "true", "True", "yes"), (False, 0, "0", "false", "False", "no")
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Row:
    """A prompt and one or two answers to it, all text or all turns."""

    place: str  # file and line
    prompt: Said
    answers: tuple[Said, ...]
    margin: float = 0.0
    liked: bool = True

    @property
    def turns(self) -> bool:
        return not isinstance(self.prompt, str)

    def as_turns(self) -> "Row":
        """The same as a conversation: what was text is a user's turn and the assistant's."""
        if self.turns:
            return self
        asked: list[Message] = [{"role": "user", "content": self.prompt}] if self.prompt else []
        said = tuple(_assistant(answer) for answer in self.answers)
        return Row(self.place, asked, said, self.margin, self.liked)


def read_answers(
    path: str | Path,
    task: Task,
    columns: dict[str, str | None] | None = None,
    bad: Bad = None,
) -> Iterator[Row]:
    """The rows of a table. columns: what they are called where that is not usual.

    bad: is told what is wrong with a row, which is then left out. Without it, and where the rest of a file cannot be
    read, raises UserError that names the file and the row.
    """
    file = Path(path).expanduser()
    if not file.is_file() or not set(file.suffixes) & set(TABLES):
        gone = "does not exist" if not file.exists() else "is no table"
        raise UserError(f"{path} {gone}: preferences are rows of a file ({', '.join(TABLES)})")
    empty = True
    for number, values in read_table(file, _pick(task, columns or {})):
        empty = False
        place = f"{file}:{number}"
        try:
            row = _pair(place, *values) if task == "pairs" else _labelled(place, *values)
        except UserError as error:
            if bad is None:
                raise
            bad(error)
            continue
        yield row
    if empty:
        raise UserError(f"{path} has no rows")


def encode_answer(prompt: Said, answer: Said, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of prompt and answer, and for each 1 if it is the answer's (its end included), else 0.

    Text is encoded in two pieces, so that no token reaches from one to the other, and ends as texts do. Of turns, only
    what the assistant says in the answer counts.
    """
    if isinstance(prompt, str):
        asked = tokenizer.prompt(prompt)
        said = [*tokenizer.encode_batch([str(answer)], inside=True)[0], tokenizer.end]
        return [*asked, *said], [0] * len(asked) + [1] * len(said)
    before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in prompt]
    return encode_chat([*before, *answer], tokenizer)  # type: ignore[misc]


def _pick(task: Task, named: dict[str, str | None]) -> Pick:
    def pick(known: Sequence[str], where: str) -> list[str | None]:
        found: list[str | None] = []
        for kind in WANTED[task]:
            name = named.get(kind) or next((name for name in USUAL[kind] if name in known), None)
            if (name is None and kind not in OPTIONAL) or (name is not None and name not in known):
                has = f"{where} has {', '.join(known) if known else 'no columns'}"
                raise UserError(f"{has}, and no {name or kind!r}: say which one it is with data.columns.{kind}=NAME")
            found.append(name)
        return found

    return pick


def _pair(place: str, prompt: Any, chosen: Any, rejected: Any, margin: Any) -> Row:
    asked = None if prompt is None else read_said(prompt, f"{place}: prompt", open_end=True)
    both = [read_said(value, f"{place}: {name}") for value, name in ((chosen, "chosen"), (rejected, "rejected"))]
    if asked is None:
        if any(isinstance(said, str) for said in both):
            raise UserError(f"{place} has no prompt, and chosen and rejected are no conversations that begin alike")
        shared = _shared(both[0], both[1])
        asked, both = both[0][:shared], [said[shared:] for said in both]
        if not (both[0] or both[1]):  # all is the same: a tie, told as such
            asked, both = asked[:-1], [asked[-1:], asked[-1:]]
    row = _together(place, asked, both)
    if row.answers[0] == row.answers[1]:
        raise UserError(f"{place}: chosen and rejected are the same: mend or delete it, or set data.skip_bad=true")
    try:
        margin = 0.0 if margin is None or margin == "" else float(margin)
    except (TypeError, ValueError):
        raise UserError(f"{place}: margin is no number: {margin!r}") from None
    if not math.isfinite(margin):
        raise UserError(f"{place}: the margin is {margin}; mend or delete this row")
    return Row(place, row.prompt, row.answers, margin)


def _labelled(place: str, prompt: Any, completion: Any, label: Any) -> Row:
    asked: Said = "" if prompt is None else read_said(prompt, f"{place}: prompt", open_end=True)
    row = _together(place, asked, [read_said(completion, f"{place}: completion")])
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, list | dict) or label not in (*YES, *NO):
        raise UserError(f"{place}: a label is true or false, not {label!r}")
    return Row(place, row.prompt, row.answers, liked=label in YES)


def _together(place: str, asked: Said, answers: list[Said]) -> Row:
    """Prompt and answers of one kind; what an answer repeats of the prompt is left out of it."""
    if isinstance(asked, str) and all(isinstance(said, str) for said in answers):
        row = Row(place, asked, tuple(answers))
    else:
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}] if asked else []
        turns = [_assistant(said) if isinstance(said, str) else said for said in answers]
        repeated = [said[len(asked) :] if _shared(asked, said) == len(asked) else said for said in turns]
        if all(said and said[0]["role"] == "user" for said in repeated):  # the prompt is told apart from what was asked
            begin = _shared(repeated[0], repeated[-1]) if len(repeated) > 1 else len(repeated[0]) - 1
            asked, repeated = [*asked, *repeated[0][:begin]], [said[begin:] for said in repeated]
        row = Row(place, asked, tuple(repeated))
    for name, said in zip(("chosen", "rejected") if len(answers) == 2 else ("completion",), row.answers):
        spoken = said if isinstance(said, str) else "".join(m["content"] for m in said if m["role"] == "assistant")
        if not spoken.strip():
            raise UserError(f"{place}: {name} is empty; mend or delete this row")
        if row.turns:
            conversation({"messages": [*row.prompt, *said]}, f"{place}: {name}")  # refuses roles out of order
    return row


def _assistant(said: Said) -> list[Message]:
    return [{"role": "assistant", "content": said}] if isinstance(said, str) else said


def _shared(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many turns both begin with."""
    return next((n for n, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def read_said(value: Any, place: str, open_end: bool = False) -> Said:
    """Text, or turns: a list of messages, or a transcript of them. open_end: the assistant may be about to speak."""
    if isinstance(value, str):
        value = valid_text(value)
        if not value.startswith("\n\nHuman:"):
            return value
        parts = _TURN.split(value)[1:]
        turns = [{"role": _SPEAKERS[who], "content": text} for who, text in zip(parts[::2], parts[1::2])]
        return turns[:-1] if open_end and not turns[-1]["content"].strip() else turns
    if not isinstance(value, list) or not value:
        raise UserError(f"{place} must be text or a list of messages, not {type(value).__name__}")
    for message in value:
        if not (isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)):
            raise UserError(f"{place}: each message needs a role ({', '.join(ROLES)}) and a content that is text")
    return [{"role": m["role"], "content": valid_text(m["content"])} for m in value]
