"""Conversations: from messages to ids with the assistant's tokens marked, and from JSONL files to messages.

What a user types can never become a control token: special names inside messages are encoded as plain characters,
however the template places them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.data.sources import open_text
from onefold.data.text.template import DEFAULT_TEMPLATE, render_template
from onefold.data.text.tokenizer import CHAT_TOKENS, Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself if it has a chat template, else with the default one and the tokens that this one needs."""
    if tokenizer.chat_template is not None:
        return tokenizer
    return tokenizer.add_special(CHAT_TOKENS).with_template(DEFAULT_TEMPLATE)


def render(
    messages: Sequence[Message], template: str | None, tokenizer: Tokenizer, add_generation_prompt: bool = False
) -> str:
    """The text that a model reads for `messages`; `template` None: the tokenizer's own.

    Raises UserError when there is no template, or it refuses these messages.
    """
    source = template or tokenizer.chat_template
    if source is None:
        raise UserError("this model has no chat template: use it with generate, or fine-tune it on conversations first")
    names = {i: name for name, i in tokenizer.special.items()}
    roles = {f"{role}_token": names.get(getattr(tokenizer, role), "") for role in ("bos", "eos", "pad")}
    return render_template(
        source,
        messages=[dict(m) for m in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **roles,
    )


def chat_ids(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation, by default up to where the assistant speaks next.

    For messages[:i] they are exactly what stands before answer i in `encode_chat`.
    """
    return [i for ids, _ in _pieces(messages, tokenizer, add_generation_prompt) for i in ids]


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and for each 1 if the assistant says it (its end of turn included), else 0.

    A message with "weight": 0 is read but not learned. Some templates write earlier turns differently from the last
    (dropping its reasoning): then only the turns that stand as they would be generated are marked; see `examples`.
    """
    return _weighted(_pieces(messages, tokenizer, False), tokenizer)


def examples(messages: Sequence[Message], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """`encode_chat` in as many rows as it takes for every answer to be learned once, as it would be generated."""
    pieces = _pieces(messages, tokenizer, False)
    found = [_weighted(pieces, tokenizer)]
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and not any(message is m for _, m in pieces):
            alone = [{**m, "weight": m.get("weight", 1) if n == i else 0} for n, m in enumerate(messages[: i + 1])]
            found.append(encode_chat(alone, tokenizer))
    return [(ids, weights) for ids, weights in found if any(weights)]


def _weighted(pieces: Sequence["_Piece"], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    weights: list[int] = []
    for piece, message in pieces:
        learned = 0
        if message is not None and message.get("weight", 1):
            ends = [n for n, i in enumerate(piece, 1) if i in tokenizer.stops]
            learned = ends[-1] if ends else len(piece)  # nothing after the end of turn is ever generated
        ids += piece
        weights += [1] * learned + [0] * (len(piece) - learned)
    return ids, weights


def read_conversations(path: str | Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(file:line, messages) for each line {"messages": [{"role": …, "content": …}, …]} of a JSONL file, .gz or not.

    Raises UserError naming the file and line of the first mistake.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} does not exist: chat needs a JSONL file with a conversation on each line")
    found = False
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found = True
                yield f"{path.name}:{number}", _conversation(line, f"{path}:{number}")
    if not found:
        raise UserError(f"{path} is empty: chat needs a conversation on each line")


def _conversation(line: str, place: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); write one object on each line") from None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{place}: needs {{"messages": [{{"role": "user", "content": "…"}}, …]}}')
    checked = [_message(m, f"{place}: message {n}") for n, m in enumerate(messages, 1)]
    if not any(m["role"] == "assistant" for m in checked):
        raise UserError(f"{place}: no message of the assistant, so there is nothing to learn")
    return checked


def _message(message: Any, place: str) -> dict[str, Any]:
    """The message with its content as one string."""
    if not isinstance(message, dict):
        raise UserError(f"{place} is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"{place} has role {role!r}; takes {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise UserError(f"{place} has no text in its content")
    return {**message, "content": content}


_Piece = tuple[list[int], Message | None]  # ids, and whose words they are: a message of the assistant's, or the rest


def _pieces(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool) -> list[_Piece]:
    """The conversation cut where the assistant begins and ends to speak.

    Each piece is encoded by itself, so that no token reaches over a border between what is given and what is learned.
    """
    if not messages:
        raise UserError("a conversation needs at least one message")
    names = sorted(tokenizer.special, key=len, reverse=True)
    mark = _unused_character(messages)
    safe = _shield(list(messages), re.compile("|".join(map(re.escape, names))) if names else None, names, mark)

    @cache
    def text(count: int, prompt: bool) -> str:
        return render(safe[:count], None, tokenizer, prompt)

    whole = text(len(safe), add_generation_prompt)
    cuts: list[tuple[int, int, Message]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = text(i, True) if i else ""
            after = text(i + 1, False)
            if whole.startswith(after) and after.startswith(before) and len(before) >= (cuts[-1][1] if cuts else 0):
                cuts.append((len(before), len(after), message))
    pieces: list[_Piece] = []
    at = 0
    for start, end, message in cuts:
        pieces.append((_encode(whole[at:start], names, mark, tokenizer), None))
        pieces.append((_encode(whole[start:end], names, mark, tokenizer), message))
        at = end
    pieces.append((_encode(whole[at:], names, mark, tokenizer), None))
    return [(ids, message) for ids, message in pieces if ids]


def _unused_character(messages: Sequence[Message]) -> str:
    """A private-use character that occurs in none of the messages."""
    used = set(json.dumps(list(messages), ensure_ascii=False, default=str))
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)


def _shield(value: Any, special: re.Pattern[str] | None, names: Sequence[str], mark: str) -> Any:
    """The value with every special name in its texts replaced by mark, number, mark."""
    if isinstance(value, str) and special:
        return special.sub(lambda found: f"{mark}{names.index(found[0])}{mark}", value)
    if isinstance(value, list):
        return [_shield(v, special, names, mark) for v in value]
    if isinstance(value, Mapping):
        return {k: _shield(v, special, names, mark) for k, v in value.items()}
    return value


def _encode(text: str, names: Sequence[str], mark: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of rendered text: the template's special tokens become themselves, shielded names plain characters."""
    ids: list[int] = []
    for n, part in enumerate(re.split(f"{mark}(\\d+){mark}", text)):
        if part:
            ids += tokenizer.encode(names[int(part)]) if n % 2 else tokenizer.encode(part, special=True)
    return ids
