"""Files of conversations: JSON lines, JSON lists, Parquet, CSV or saved datasets, a conversation a row, to messages.

A row is one of these shapes:

    {"messages": [{"role": "user", "content": "…"}, …]}                    OpenAI's; a bare list of messages, too
    {"conversations": [{"from": "human", "value": "…"}, …]}                ShareGPT's, perhaps with "system"
    {"instruction": "…", "input": "…", "output": "…"}                      Alpaca's, perhaps with "system"
    {"prompt": "…", "completion": "…"}                                     texts, or lists of messages

Whether an answer is learned, a message says by "weight" (OpenAI's, 0 or 1) or "train" (true or false).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from onefold.core.errors import UserError
from onefold.core.json_lines import valid_text
from onefold.data.sources import LINES, dataset_files, is_dataset, open_text
from onefold.data.tables import TABLES, read_arrow, read_table
from onefold.data.text.chat.messages import ROLES

SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
SHAPES = (
    'takes {"messages": [{"role": "user", "content": "…"}, …]}, "conversations" as ShareGPT has them, '
    '"instruction" and "output", or "prompt" and "completion"'
)
PART = 1 << 20  # characters of a JSON list read at once
LONGEST = 64 << 20  # characters of one conversation in it
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,\ufeff]*")

Messages = list[dict[str, Any]]


def read_conversations(
    path: str | Path, bad: Callable[[UserError], None] | None = None
) -> Iterator[tuple[str, Messages]]:
    """(file:line, messages) of each row; of tables (file:row). Contents are texts, and `weight` says what is learned.

    bad: is told what is wrong with a row, which is then left out. Without it, and where the rest of a file cannot be
    read, raises UserError naming the file and line.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: chat needs a file with a conversation in each row")
    found = False
    for file, number, value in _rows(path):
        found = True
        try:
            messages = conversation(value, f"{file}:{number}")
        except UserError as error:
            if bad is None:
                raise
            bad(error)
            continue
        yield f"{file.name}:{number}", messages
    if not found:
        raise UserError(f"{path} is empty: chat needs a conversation in each row")


def conversation(value: Any, place: str) -> Messages:
    """The messages of a row, whatever its shape. Raises UserError that begins with `place`."""
    if isinstance(value, UserError):
        raise value
    messages = _shaped(value, place)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{place}: no messages; {SHAPES}")
    checked = [_message(m, f"{place}: message {n}") for n, m in enumerate(messages, 1)]
    _check_order(checked, place)
    answers = [m for m in checked if m["role"] == "assistant"]
    if not answers:
        raise UserError(f"{place}: no message of the assistant, so there is nothing to learn")
    if not any(m.get("weight", 1) for m in answers):
        raise UserError(f"{place}: every answer has weight 0, so there is nothing to learn")
    return checked


def _shaped(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: no object; {SHAPES}")
    value = {name: v for name, v in value.items() if v is not None}  # as missing values are in tables
    if value.get("tools") or value.get("functions"):
        name = "tools" if value.get("tools") else "functions"
        raise UserError(f"{place}: descriptions of {name} are not supported: write them into the system's message")
    system = [{"role": "system", "content": value["system"]}] if value.get("system") else []
    for name in ("messages", "conversations"):
        if name in value:
            return value[name] if not system or not isinstance(value[name], list) else [*system, *value[name]]
    if "instruction" in value and ("output" in value or "response" in value):
        asked, more = value["instruction"], value.get("input") or value.get("context") or ""
        user = {"role": "user", "content": asked}
        if isinstance(asked, str) and isinstance(more, str) and more.strip():
            user = {"role": "user", "content": f"{asked}\n\n{more}", "instruction": asked, "input": more}
        return [*system, user, {"role": "assistant", "content": value.get("output", value.get("response"))}]
    if "prompt" in value and "completion" in value:
        asked, said = value["prompt"], value["completion"]
        asked = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        if isinstance(said, list):  # what stands before them is given
            return [*system, *({**m, "weight": 0} if _speaks(m) else m for m in asked), *said]
        return [*system, *asked, {"role": "assistant", "content": said}]
    raise UserError(f"{place}: no conversation (it has {', '.join(value) or 'nothing'}); {SHAPES}")


def _speaks(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def _message(message: Any, place: str) -> dict[str, Any]:
    """The message with role, content as one text, and weight where it is not learned."""
    if not isinstance(message, Mapping):
        raise UserError(f"{place} is not an object with role and content")
    message = {name: v for name, v in message.items() if v is not None}
    if "from" in message and "role" not in message:
        spoke, message["content"] = message.pop("from"), message.pop("value", None)
        if not isinstance(spoke, str) or spoke not in SHAREGPT:
            raise UserError(f"{place} is from {spoke!r}; takes {', '.join(SHAREGPT)}")
        message["role"] = SHAREGPT[spoke]
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{place} has role {role!r}; takes {', '.join(ROLES)}")
    if message.get("function_call"):
        raise UserError(f"{place} has function_call, which is no longer used: write tool_calls")
    if message.get("tool_calls"):
        if role != "assistant" or not isinstance(message["tool_calls"], list):
            raise UserError(f"{place}: tool_calls is a list of calls in a message of the assistant")
        message["tool_calls"] = [_call(call, place) for call in message["tool_calls"]]
    content = _text(message.get("content"), place, bool(message.get("tool_calls")))
    weight = _weight(message, place)
    if role == "assistant" and weight and not content.strip() and not message.get("tool_calls"):
        raise UserError(f"{place}: the assistant says nothing; remove the turn, or give it weight 0")
    if role != "assistant" and weight and message.get("train"):
        raise UserError(f"{place} has train true, but only what the assistant says is learned")
    message = {name: v for name, v in message.items() if name not in ("weight", "train")}
    return {**message, "role": role, "content": content, **({} if weight else {"weight": 0})}


def _text(content: Any, place: str, calls: bool) -> str:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind != "text":
                raise UserError(f"{place} has a part of type {kind!r}: only text is learned here")
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None
    if content is None and calls:
        return ""
    if not isinstance(content, str):
        raise UserError(f"{place} has no text in its content")
    return valid_text(content)


def _weight(message: Mapping[str, Any], place: str) -> bool:
    weight, train = message.get("weight", 1), message.get("train", True)
    if weight not in (0, 1) or not isinstance(weight, int | float):
        raise UserError(f"{place} has weight {weight!r}; takes 0 (read only) or 1 (learned)")
    if not isinstance(train, bool):
        raise UserError(f"{place} has train {train!r}; takes true or false")
    return bool(weight) and train


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call of a tool with its arguments as an object, which is what templates write."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f'{place}: a call of a tool needs {{"function": {{"name": "…", "arguments": {{…}}}}}}')
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: the arguments of {function['name']} are not valid JSON ({error})") from None
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _check_order(messages: Messages, place: str) -> None:
    """What the system says comes first, then user and assistant take turns; tools answer calls."""
    before: dict[str, Any] = {"role": "system"}
    for n, message in enumerate(messages, 1):
        role, spoke = message["role"], before["role"]
        if role in ("system", "developer"):
            if spoke not in ("system", "developer"):
                raise UserError(f"{place}: message {n} is of the {role}, which speaks before all others")
        elif role == "tool":
            if spoke != "tool" and not before.get("tool_calls"):
                raise UserError(f"{place}: message {n} is of a tool, but message {n - 1} calls none")
        elif role == spoke:
            raise UserError(f"{place}: messages {n - 1} and {n} are both of the {role}: join them, or mend the order")
        before = message


def _rows(path: Path) -> Iterator[tuple[Path, int, Any]]:
    """(file, line or row, what it holds); in place of a line that is no JSON, the UserError that says so."""
    inner = Path(path.stem) if path.suffix == ".gz" else path
    if is_dataset(path):
        parts = dataset_files(path)
        for file in parts.get("train") or next(iter(parts.values()), []):
            yield from _table(read_arrow, file)
    elif path.is_dir():
        raise UserError(f"{path} is a folder: name a file of conversations in it")
    elif inner.suffix == ".json":
        yield from _json_values(path)
    elif path.suffix in TABLES and path.suffix not in LINES:
        yield from _table(read_table, path)
    else:
        yield from _json_lines(path)


def _table(reader: Callable[..., Iterator[tuple[int, tuple[Any, ...]]]], file: Path) -> Iterator[tuple[Path, int, Any]]:
    names: list[str] = []

    def every(known: Sequence[str], where: str) -> Sequence[str]:
        names[:] = known
        return known

    for number, values in reader(file, every):
        yield file, number, dict(zip(names, values))


def _json_lines(file: Path) -> Iterator[tuple[Path, int, Any]]:
    with open_text(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                value = UserError(f"{file}:{number}: not valid JSON ({error}); write one object on each line")
            yield file, number, value


def _json_values(file: Path) -> Iterator[tuple[Path, int, Any]]:
    """The values of a JSON list, or those that follow one another; no more than one of them is in memory at a time."""
    with open_text(file) as opened:
        reader = _Values(opened, file)
        listed = reader.peek() == "["
        reader.at += listed
        while reader.peek() and not (listed and reader.peek() == "]"):
            yield file, reader.line, reader.read()
        if listed and not reader.peek():
            raise UserError(f"{file}:{reader.line}: the list does not end; is the file whole?")


class _Values:
    """JSON values read one by one from an opened file."""

    def __init__(self, opened: IO[str], file: Path):
        self._opened, self._file, self._text = opened, file, ""
        self.at, self.line = 0, 1

    def peek(self) -> str:
        """The next character that is no blank and no comma; "" at the end."""
        while True:
            found = _BETWEEN.match(self._text, self.at).end()
            self._pass(found)
            if found < len(self._text) or not self._more(PART):
                return self._text[self.at : self.at + 1]

    def read(self) -> Any:
        """The value that begins here."""
        size = PART
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
            except RecursionError:
                raise UserError(f"{self._file}:{self.line}: lists in lists without end") from None
            except ValueError as error:
                if len(self._text) < LONGEST and self._more(size):  # it may go on
                    size *= 2
                    continue
                self._pass(getattr(error, "pos", self.at))
                raise UserError(f"{self._file}:{self.line}: not valid JSON ({error.args[0]})") from None
            self._pass(end)
            return value

    def _pass(self, to: int) -> None:
        self.line += self._text.count("\n", self.at, to)
        self.at = to

    def _more(self, size: int) -> bool:
        added = self._opened.read(size)
        self._text, self.at = self._text[self.at :] + added, 0
        return bool(added)
