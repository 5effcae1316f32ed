"""Conversations: from messages to ids with the assistant's tokens marked.

What a user types can never become a control token: special names inside messages are encoded as plain characters,
however the template places them. Every stretch of the assistant's is encoded by itself, so that what is learned begins
exactly where a generation begins.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from onefold.core.errors import UserError
from onefold.core.json_lines import valid_text
from onefold.data.text.chat.sandbox import DEFAULT_TEMPLATE, check_template, render_template
from onefold.data.text.chat.templates import TEMPLATES
from onefold.data.text.tokenizers.tokenizer import CHAT_TOKENS, Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")


def with_chat(tokenizer: Tokenizer, template: str | None = None) -> Tokenizer:
    """The tokenizer with a chat template, and with the special tokens that this one needs.

    template: a name among `templates.TEMPLATES`, or a file with Jinja; None: the tokenizer's own, else the default
    one. Raises UserError when there is none of that name, it is not valid Jinja, or ends turns with a missing token.
    """
    if template is None:
        if tokenizer.chat_template is not None:
            return tokenizer
        return tokenizer.add_special(CHAT_TOKENS).with_template(DEFAULT_TEMPLATE)
    if template in TEMPLATES:
        source, tokens = TEMPLATES[template]
    else:
        source, tokens = _template_file(template), ()
    if "eos_token" in source and tokenizer.eos is None:
        raise UserError(f"template={template} ends turns with the end-of-text token, and this tokenizer has none")
    return tokenizer.add_special(tokens).with_template(source)


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


@dataclass(frozen=True)
class Script:
    """A conversation as its template writes it, cut where the assistant begins to speak and behind its end of turn."""

    pieces: tuple[tuple[str, Message | None], ...]  # text, and whose words it is: an assistant's message, or the rest
    names: tuple[str, ...] = ()  # those of special tokens that messages hold: in pieces they are mark, number, mark
    mark: str = ""

    @property
    def text(self) -> str:
        return self.plain("".join(text for text, _ in self.pieces))

    def plain(self, text: str) -> str:
        """The text with what was typed in place of marks."""
        return re.sub(f"{self.mark}(\\d+){self.mark}", lambda m: self.names[int(m[1])], text) if self.mark else text

    def has(self, message: Message) -> bool:
        """Whether this message of the assistant's stands here as it would be generated."""
        return any(message is m for _, m in self.pieces)


class Row(NamedTuple):
    """A conversation as ids, and which of them are learned."""

    ids: list[int]
    learned: list[int]  # for each id 1 if the assistant says it (its end of turn included), else 0
    size: int  # UTF-8 bytes of text that the learned ids spell
    text: str  # of the conversation as the model reads it


def chat_ids(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation, by default up to where the assistant speaks next.

    For messages[:i] they are exactly what stands before answer i in `encode_chat`.
    """
    return encode([script(messages, tokenizer, add_generation_prompt)], tokenizer)[0].ids


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and for each 1 if the assistant says it (its end of turn included), else 0.

    A message with "weight": 0 is read but not learned. Some templates write earlier turns differently from the last
    (dropping its reasoning): then only the turns that stand as they would be generated are marked; see `scripts`.
    """
    row = encode([script(messages, tokenizer)], tokenizer)[0]
    return row.ids, row.learned


def scripts(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Script]:
    """As many scripts as it takes for every answer to be learned once, as it would be generated; nearly always one.

    Raises UserError when there is an answer that the template never writes so.
    """
    whole = script(messages, tokenizer)
    found = [whole] if any(m is not None and _learned(m) for _, m in whole.pieces) else []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not _learned(message) or whole.has(message):
            continue
        alone = [m if n == i else {**m, "weight": 0} for n, m in enumerate(messages[: i + 1])]
        found.append(script(alone, tokenizer))
        if not found[-1].has(message):
            raise UserError(
                f"message {i + 1}: the chat template writes it otherwise than it asks for it, so that it cannot be "
                "learned as it would be generated; give another with data.template="
            )
    return found


def script(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = False) -> Script:
    """The conversation as the tokenizer's template writes it. Raises UserError when it refuses these messages."""
    if not messages:
        raise UserError("a conversation needs at least one message")
    names, mark = tuple(sorted(_typed(list(messages), tokenizer), key=len, reverse=True)), ""
    safe: Sequence[Message] = messages
    if names:
        mark = _unused_character(messages)
        safe = _shield(list(messages), re.compile("|".join(map(re.escape, names))), names, mark)

    @cache
    def text(count: int, prompt: bool) -> str:
        return valid_text(render(safe[:count], None, tokenizer, prompt))

    whole = text(len(safe), add_generation_prompt)
    pieces: list[tuple[str, Message | None]] = []
    at = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or (found := _spoken(text, i, tokenizer)) is None:
            continue
        begin, said = found
        if begin >= at and whole.startswith(said, begin) and whole.startswith(text(i, True)):
            pieces += [(whole[at:begin], None), (said, message)]
            at = begin + len(said)
            _check_calls(message, said, i)
    pieces.append((whole[at:], None))
    return Script(tuple(piece for piece in pieces if piece[0]), names, mark)


def encode(written: Sequence[Script], tokenizer: Tokenizer) -> list[Row]:
    """The ids of many scripts, all of their texts encoded at once.

    No token reaches over a border between what is given and what is learned; otherwise they are those of the whole
    text, also where a tokenizer puts a blank before its beginning.
    """
    texts: Texts = {}, {}
    plans = [[*_plan(one, tokenizer, texts)] for one in written]
    encoded = tokenizer.encode_batch([*texts[0]]), tokenizer.encode_batch([*texts[1]], inside=True)
    sizes = [[len(text.encode()) for text in some] for some in texts]
    rows = []
    for one, plan in zip(written, plans):
        ids: list[int] = []
        learned: list[int] = []
        size = 0
        for message, parts in plan:
            said = message is not None and _learned(message)
            for part in parts:
                if isinstance(part, int):
                    ids.append(part)
                else:
                    inside, number = part
                    ids += encoded[inside][number]
                    size += said * sizes[inside][number]
            learned += [int(said)] * (len(ids) - len(learned))
        rows.append(Row(ids, learned, size, one.text))
    return rows


Texts = tuple[dict[str, int], dict[str, int]]  # plain texts at the beginning, and behind others, with their numbers


def _plan(
    one: Script, tokenizer: Tokenizer, texts: Texts
) -> Iterator[tuple[Message | None, list[int | tuple[bool, int]]]]:
    """Each piece as special tokens and places among `texts`, to which its plain texts are added."""
    inside = False
    for text, message in one.pieces:
        parts: list[int | tuple[bool, int]] = []
        for part in tokenizer.cut(text):
            if isinstance(part, int):
                parts.append(part)
                inside = not tokenizer.blank_anew
            else:
                parts.append((inside, texts[inside].setdefault(one.plain(part), len(texts[inside]))))
                inside = True
        yield message, parts


def _spoken(text: Callable[[int, bool], str], i: int, tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Where message i, which the assistant says, begins, and what is generated there; None: it cannot be told.

    text(n, prompt): what the template writes for the first n messages.
    """
    try:
        before = text(i, True)
    except UserError:
        if i:
            raise
        return None  # most templates are not written to begin with the assistant
    after = text(i + 1, False)
    return (len(before), tokenizer.turn(after[len(before) :])) if after.startswith(before) else None


def _learned(message: Message) -> bool:
    return bool(message.get("weight", 1))


def _check_calls(message: Message, written: str, i: int) -> None:
    for call in message.get("tool_calls") or ():
        name = (call.get("function") or call).get("name")
        if not name or name not in written:
            raise UserError(f"message {i + 1} calls tools, which this chat template does not write")


def _template_file(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        near = get_close_matches(path, TEMPLATES, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no chat template {path!r}: takes {', '.join(TEMPLATES)}, or a file with Jinja{guess}")
    try:
        source = file.read_text(encoding="utf-8")
        check_template(source)
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
    return source


def _typed(value: Any, tokenizer: Tokenizer) -> set[str]:
    """Names of special tokens in texts of messages."""
    if isinstance(value, str):
        return {name for name in tokenizer.special if name in value} if tokenizer.mentions_special(value) else set()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*(_typed(v, tokenizer) for v in inner))


def _unused_character(messages: Sequence[Message]) -> str:
    """A private-use character that occurs in none of the messages."""
    used = set(json.dumps(list(messages), ensure_ascii=False, default=str))
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)


def _shield(value: Any, special: re.Pattern[str], names: Sequence[str], mark: str) -> Any:
    """The value with every special name in its texts replaced by mark, number, mark."""
    if isinstance(value, str):
        return special.sub(lambda found: f"{mark}{names.index(found[0])}{mark}", value)
    if isinstance(value, list):
        return [_shield(v, special, names, mark) for v in value]
    if isinstance(value, Mapping):
        return {k: _shield(v, special, names, mark) for k, v in value.items()}
    return value
