"""OpenAI's wire format: requests in, bodies out. https://platform.openai.com/docs/api-reference

What this server cannot do is refused by name, never ignored in silence; fields that steer only OpenAI's own billing and
storage are accepted and ignored.
"""

import json
import time
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import accumulate
from secrets import token_hex
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from onefold.serve.engine import About, Job, Piece, Refusal, Spelled

MOST_LOGPROBS = 100  # likeliest tokens told at a place

IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# Accepted while they say nothing; the values that say nothing, beside null.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "frequency_penalty": (0,), "presence_penalty": (0,), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "suffix": ("",), "web_search_options": (),
}  # fmt: skip


def _several(value: Any) -> Any:
    """One text, where one or several may stand, as a list of one."""
    return [value] if isinstance(value, str) else value


def _unless_false(value: Any) -> Any:
    return None if value is False else value


def _parts(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise PydanticCustomError("content", "must be text, or a list of text parts")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=256)]
B = TypeVar("B", bound="Strict")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid", hide_input_in_errors=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn. Fields of turns that a client sends back as it got them (refusal, annotations…) are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)]

    def plain(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(Strict):
    """What both kinds of completion share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop] | None, Field(max_length=16), BeforeValidator(_several)] = None
    # Beyond OpenAI's, as other open servers name them:
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    adapter: str | None = None  # of the model's; asking for the model of this name does the same

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise PydanticCustomError("shape", "the body must be a JSON object")
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in UNSUPPORTED:
                if value is not None and not any(value == nothing for nothing in UNSUPPORTED[name]):
                    text = f"{name} is not supported by this server"
                    text = "n must be 1: one answer a request" if name == "n" else text
                    raise PydanticCustomError("unsupported", "{text}", {"text": text, "param": name})
            elif name not in IGNORED:
                near = get_close_matches(name, cls.model_fields, n=1)
                text = f"unknown field {name[:80]!r}" + (f"; did you mean {near[0]}?" if near else "")
                raise PydanticCustomError("unknown", "{text}", {"text": text, "param": name[:80]})
        return kept

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """What the client set, by the names of `infer.sampling`; the rest is the model's own default."""
        names = ("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if "seed" in given:
            given["seed"] %= 2**64  # negative ones are allowed here
        if given.get("top_k") == 0:
            del given["top_k"]  # other servers' way to say: all
        if self.stop:
            given["stop"] = self.stop
        return given


class ChatBody(Body):
    messages: list[Message] = Field(min_length=1, max_length=1024)  # templates take time quadratic in their number
    max_completion_tokens: int | None = Field(None, ge=1)

    def job(self, adapter: str | None = None) -> Job:
        messages = tuple(message.plain() for message in self.messages)
        most = self.max_completion_tokens or self.max_tokens
        return Job(messages=messages, max_tokens=most, sampling=self.sampling(), adapter=adapter)


class TextBody(Body):
    prompt: Annotated[list[str], Field(min_length=1, max_length=1), BeforeValidator(_several)]
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS), BeforeValidator(_unless_false)] = None

    @model_validator(mode="after")
    def _told_whole(self) -> "TextBody":
        if self.logprobs is not None and (self.stream or self.echo):
            text = f"logprobs with {'stream' if self.stream else 'echo'} is not supported by this server"
            raise PydanticCustomError("unsupported", "{text}", {"text": text, "param": "logprobs"})
        return self

    @property
    def text(self) -> str:
        return self.prompt[0]

    def job(self, adapter: str | None = None) -> Job:
        most = self.max_tokens or 16  # OpenAI's default
        sampling = self.sampling()
        return Job(prompt=self.text, max_tokens=most, sampling=sampling, adapter=adapter, logprobs=self.logprobs)


def parse(kind: type[B], body: bytes) -> B:
    """Validate a request; a mistake raises Refusal with one line that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx") or {}
        place = ".".join(map(str, first["loc"]))
        param = context.get("param") or place or None
        text = f"{place}: {first['msg']}" if place else first["msg"]
        if first["type"] == "json_invalid":
            text = f"the body is not valid JSON: {context.get('error', '')}"
        raise Refusal(400, text[:500], param=param) from None


class Reply:
    """The bodies of one answer, whole or as a stream of chunks."""

    def __init__(self, body: Body, model: str, prompt_tokens: int):
        self.chat = isinstance(body, ChatBody)
        self.echo = body.text if isinstance(body, TextBody) and body.echo else ""
        self.logprobs = isinstance(body, TextBody) and body.logprobs is not None
        self.include_usage = body.include_usage
        self.prompt_tokens = prompt_tokens
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + token_hex(12)
        self.created, self.model = int(time.time()), model

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        usage = self.usage(last.tokens)
        if not self.chat:
            said = {"text": self.echo + text, "logprobs": _logprobs(last.spelled) if self.logprobs else None}
            return self._body("text_completion", [self._choice(said, last.finish)], usage=usage)
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._body("chat.completion", [self._choice({"message": message}, last.finish)], usage=usage)

    def first(self) -> str:
        """The event that opens a stream: whose turn it is, or the echoed prompt; may be empty."""
        if self.chat:
            return self._event([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])
        return self._event([self._choice({"text": self.echo}, None)]) if self.echo else ""

    def piece(self, piece: Piece) -> str:
        events = ""
        if piece.text or not self.chat:
            said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
            events = self._event([self._choice(said, None if self.chat else piece.finish)])
        if piece.finish and self.chat:
            events += self._event([self._choice({"delta": {}}, piece.finish)])
        if piece.finish and self.include_usage:
            events += self._event([], usage=self.usage(piece.tokens))
        return events

    def usage(self, completion: int) -> dict[str, int]:
        total = self.prompt_tokens + completion
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion, "total_tokens": total}

    def _choice(self, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, "logprobs": None, **said, "finish_reason": finish}

    def _body(self, kind: str, choices: list[dict], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def _event(self, choices: list[dict], **more: Any) -> str:
        if self.include_usage:
            more = {"usage": None} | more
        return event(self._body("chat.completion.chunk" if self.chat else "text_completion", choices, **more))


def _logprobs(spelled: Sequence[Spelled]) -> dict[str, list[Any]]:
    """As OpenAI's completions have them; places count characters of the answer."""
    places = [0, *accumulate(len(token.text) for token in spelled)]
    return {
        "tokens": [token.text for token in spelled],
        "token_logprobs": [token.logprob for token in spelled],
        "top_logprobs": [dict(token.top) for token in spelled],
        "text_offset": places[: len(spelled)],
    }


def check_model(asked: str | None, name: str, adapters: Iterable[str] = ()) -> None:
    """Refuse a request for another model than the one of this name or with one of these adapters."""
    if asked is not None and asked not in (name, *adapters):
        known = ", ".join(map(repr, (name, *adapters)))
        text = f"the model {asked[:200]!r} is not served here; this server has {known}"
        raise Refusal(404, text, code="model_not_found", param="model")


def chosen_adapter(body: Body, about: About) -> str | None:
    """The adapter that a request asks for, by name or as a model; None: the model as it is served."""
    check_model(body.model, about.name, about.adapters)
    if body.adapter is None:
        return body.model if body.model in about.adapters else None
    if body.adapter not in about.adapters:
        known = ", ".join(about.adapters) or "none"
        raise Refusal(404, f"no adapter {body.adapter[:200]!r} here; there are {known}", param="adapter")
    return body.adapter


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


def cards(about: About) -> list[dict[str, Any]]:
    """The model as /v1/models shows it, and what it is with each of its adapters."""
    return [card(about), *(card(about, adapter) | {"parent": about.name} for adapter in about.adapters)]


def card(about: About, name: str | None = None) -> dict[str, Any]:
    """A model, by another name than its own; the page reads the three fields beyond OpenAI's."""
    return {
        "id": name or about.name, "object": "model", "created": about.created, "owned_by": "onefold",
        "parameters": about.parameters, "context_length": about.adapters.get(name, about.context), "chat": about.chat,
    }  # fmt: skip
