"""The seam between HTTP and whatever runs the model: a job goes in, an answer streams out.

`app.py` knows an engine only through these types. `queue.py` has the first engine (one request after another); one that
batches many requests replaces it by fulfilling `Engine`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from onefold.core.config import Config


class Limits(Config):
    """What one request may cost, and how many may wait."""

    body_bytes: int = 2**20  # larger requests are refused before they are read
    body_seconds: float = 30.0  # a request must have arrived in full by then
    prompt_tokens: int | None = None  # None: as many as the model's context holds
    max_tokens: int = 16384  # of one answer; a request for more gets these
    default_tokens: int = 2048  # of one answer, when a chat request does not say
    answer_seconds: float = 600.0  # waiting and answering together
    waiting: int = 32  # requests in line behind those that run


class Refusal(Exception):
    """A request that is not answered: an HTTP status, one line for a person, and OpenAI's names for the reason."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after = retry_after  # seconds

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Job:
    """What a client asks for: either `messages` to answer or a `prompt` to go on with."""

    messages: tuple[Mapping[str, str], ...] | None = None
    prompt: str | None = None
    max_tokens: int | None = None  # None: the server's default
    sampling: Mapping[str, Any] = field(default_factory=dict)  # what the client set: temperature, top_p, seed, stop…
    adapter: str | None = None  # one of the model's; None: as the server was started
    logprobs: int | None = None  # how many of the likeliest tokens to tell at each place; None: nothing of that kind


@dataclass(frozen=True)
class Spelled:
    """A token of an answer as text, its log-probability, and those of the likeliest in its place."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Piece:
    """The next stretch of an answer; the last has `finish`: "stop" (the model ended it) or "length" (out of room)."""

    text: str
    tokens: int = 0  # tokens of the answer so far
    finish: Literal["stop", "length"] | None = None
    spelled: tuple[Spelled, ...] = ()  # with the last piece, if the job asked: all tokens, one that ends it included


@dataclass(frozen=True)
class About:
    """What the model is, for /v1/models and the page."""

    name: str
    parameters: int
    context: int | None  # tokens; None: unbounded
    chat: bool  # whether it knows turns; without, it only continues text
    created: int  # Unix time
    vectors: int | None = None  # numbers in the vectors that it makes of texts; None: it writes
    # What else it can be: names that a request may ask for, and the context that each leaves.
    adapters: Mapping[str, int | None] = field(default_factory=dict)


class Answer(Protocol):
    prompt_tokens: int

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they come; raises Refusal when the answer fails on the way."""
        ...

    def cancel(self) -> None:
        """Nobody listens any more: stop working on it. May be called at any time, from the event loop, repeatedly."""
        ...


class Engine(Protocol):
    about: About
    limits: Limits

    async def submit(self, job: Job) -> Answer:
        """Take a job in, or raise Refusal at once (too long, too many waiting)."""
        ...

    def load(self) -> dict[str, int]:
        """How many jobs run and wait."""
        ...

    def close(self, wait: float = 0.0) -> None:
        """End all answers, running and waiting, and take no more; wait up to `wait` seconds for the model to rest.

        May be called from any thread and repeatedly.
        """
        ...
