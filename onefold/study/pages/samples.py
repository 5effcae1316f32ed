"""What a model wrote, as safe HTML: everything is escaped here, token by token; nothing of it is ever markup."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

MOST = 20_000  # characters of a sample that are shown
COLORS = (("Keyword", "word"), ("Operator.Word", "word"), ("Literal.String", "string"), ("Literal.Number", "number"))
COLORS += (("Comment", "note"), ("Name.Function", "call"), ("Name.Class", "call"), ("Name.Decorator", "call"))
FENCE = re.compile(r"^```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)", re.M | re.S)


def sample_html(sample: Mapping[str, Any]) -> Markup:
    """One sample of results.json: a continuation after its prompt, or a conversation."""
    language = sample.get("language")
    if "messages" in sample:
        parts = [_message(message, language) for message in sample["messages"]]
        return Markup('<div class="talk">') + Markup("").join(parts) + Markup("</div>")
    prompt, text = (clean(str(sample.get(key) or "")) for key in ("prompt", "text"))
    return _block(prompt + text, language, given=len(prompt))


def clean(text: str) -> str:
    """Without what cannot stand in a page: control characters and halves of characters."""
    text = text[:MOST].encode("utf-8", "replace").decode()
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def _message(message: Mapping[str, Any], language: str | None) -> Markup:
    role, content = str(message.get("role", "")), clean(str(message.get("content") or ""))
    known = role if role in ("system", "user", "assistant") else "other"
    who = message.get("name") or {"system": "System", "user": "User", "assistant": "Model"}.get(role, role)
    if language and role == "assistant" and "```" not in content:
        said = _block(content.rstrip("\n"), language)
    else:
        said = Markup("").join(_said(content))
    return Markup('<div class="turn {}"><span class="who">{}</span>{}</div>').format(known, who, said)


def _said(text: str) -> Iterator[Markup]:
    """Prose as paragraphs, what stands in ``` fences as code."""
    end = 0
    for fence in FENCE.finditer(text):
        yield _prose(text[end : fence.start()])
        yield _block(fence[2].rstrip("\n"), fence[1] or None)
        end = fence.end()
    yield _prose(text[end:])


def _prose(text: str) -> Markup:
    return Markup('<p class="said">{}</p>').format(text.strip("\n")) if text.strip() else Markup("")


def _block(text: str, language: str | None, given: int = 0) -> Markup:
    """Code in colour, or plain text; the first `given` characters were the prompt."""
    prompt, made, at = [], [], 0
    for color, token in _tokens(text, language):
        inside = max(0, min(len(token), given - at))
        prompt.append(_colored(token[:inside], color))
        made.append(_colored(token[inside:], color))
        at += len(token)
    begin = Markup('<span class="given">{}</span>').format(Markup("").join(prompt)) if given else Markup("")
    kind = "code" if language else "text"
    return Markup('<pre class="{}"><code>{}{}</code></pre>').format(kind, begin, Markup("").join(made))


def _colored(text: str, color: str | None) -> Markup:
    return Markup('<span class="c-{}">{}</span>').format(color, text) if color and text else escape(text)


def _tokens(text: str, language: str | None) -> Iterator[tuple[str | None, str]]:
    """(colour, text) in order, which together are `text`."""
    lexer = _lexer(language)
    if lexer is None:
        yield None, text
        return
    for kind, token in lexer.get_tokens(text):
        name = str(kind).removeprefix("Token.")
        yield next((color for prefix, color in COLORS if name.startswith(prefix)), None), token


def _lexer(language: str | None):
    """Of pygments, which rich brings along; None for plain text and languages that it does not know."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None
