"""A model that only somebody else's service reaches: texts go in, log-probabilities of what may follow come out.

Any server of OpenAI's /v1/completions with `logprobs` will do. Of each text one token is asked for, with the likeliest
tokens in its place; a class's word that is not among them is no likelier than the last of them, and counts as that.
"""

import json
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from typing import Annotated, Any, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.infer.label_words import LabelWordsConfig

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that pass
REFUSED = {400, 413, 422}  # of this request; others may be answered
FIRST_WAIT, LONGEST = 1.0, 60.0  # seconds between two attempts
PORTS = {"http": 80, "https": 443}
LARGEST = 2**24  # bytes of an answer

T = TypeVar("T")


class Refused(UserError):
    """One request that a service does not take, as a prompt that is too long for it."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """A key is for the service that it was given for, and not for wherever that points to."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


class EndpointConfig(Config):
    """Where the service is, and how it is asked. Its key is no part of what is saved."""

    url: str  # with or without /v1, /v1/completions, /v1/chat/completions
    model: str | None = None  # by the service's name; None: its only one
    top: Annotated[int, Field(ge=1)] = 20  # likeliest tokens asked for; OpenAI's own service gives 5
    parallel: Annotated[int, Field(ge=1)] = 4  # requests under way at once
    timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds for one
    attempts: Annotated[int, Field(ge=1)] = 6  # at one request, the waits between them growing from one second
    per_minute: Annotated[float, Field(gt=0)] | None = None  # requests begun in a minute, at most


def keys_of(urls: Iterable[str], keys: Sequence[str]) -> dict[str, str | None]:
    """The key of each address. A plain key is for the only service, or all that have none of their own, where these are
    at one host; others are told apart as https://HOST=KEY. Raises UserError where a key might go to a stranger.
    """
    hosts, own, plain, others = {url: _host(url) for url in urls}, dict[str, str](), list[str](), list[str]()
    for key in " ".join(keys).split():
        address, equals, secret = key.partition("=")
        if "://" in address and equals:
            own[_host(address)] = secret
            others += [address] * (_host(address) not in hosts.values())
        else:
            plain.append(key)
    if plain and (len(plain) > 1 or len(set(hosts.values()) - set(own)) > 1):
        raise UserError("with services at several hosts, say whose each key is: https://HOST=KEY")
    if others:
        say(f"passed over: the keys of {', '.join(others)}, since nothing is asked there")
    return {url: own.get(host, plain[0] if plain else None) for url, host in hosts.items()}


def _host(url: str) -> str:
    """However it is written: in capitals, with the port that goes without saying."""
    try:
        parts = urllib.parse.urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS.get(parts.scheme)}"
    except ValueError as error:
        raise UserError(f"{url} is no address of a service: {error}") from None


class Service:
    """An address that answers JSON with JSON. What passes is tried again; `per_minute` bounds how much is asked.

    key: sent along, and nowhere saved. Any number of threads may ask.
    """

    def __init__(self, config: EndpointConfig, key: str | None = None):
        base = config.url.rstrip("/").removesuffix("/completions").removesuffix("/chat").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise UserError(f"{config.url} is no address of a service: it begins with http:// or https://")
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key holds characters that no key has: give it in one line of plain letters and digits")
        self.config, self.base, self._key = config, base, key
        self._turn, self._next, self._stopped = threading.Lock(), 0.0, threading.Event()

    @contextmanager
    def asking(self) -> Iterator[ThreadPoolExecutor]:
        """Threads to `post` from. When they are left early, as by Ctrl-C, nothing waits for another attempt."""
        self._stopped.clear()
        with ThreadPoolExecutor(self.config.parallel) as pool:
            try:
                yield pool
            finally:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """What `read` makes of the answer; its ValueErrors say that there is something else than was asked for.

        Raises UserError when the service stays silent, refuses (Refused: only this), or goes on answering with
        something else.
        """
        url = self.base + path
        body = body | ({"model": self.config.model} if self.config.model else {})
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        why = ""
        for attempt in range(self.config.attempts):
            wait = FIRST_WAIT * 2**attempt
            self._wait_for_turn()
            try:
                with _OPENER.open(request, timeout=self.config.timeout) as answer:
                    content = answer.read(LARGEST)
                found = json.loads(content)
                if isinstance(found, dict):
                    return read(found)
                why = "it answers with something else than a JSON object"
            except urllib.error.HTTPError as error:
                why = f"status {error.code}{_told(error)}"
                if error.code not in AGAIN:
                    key = "; give its key (--key, ONEFOLD_SERVICE_KEY)"
                    hint = {401: key, 403: key, 404: "; is there a model of that name?"}
                    refusal = Refused if error.code in REFUSED else UserError
                    raise refusal(f"{url} refuses: {why}{hint.get(error.code, '')}") from None
                after = error.headers.get("Retry-After", "")
                wait = float(after) if after.isdigit() else wait
            except json.JSONDecodeError:
                why = "it answers with something else than JSON"
            except ValueError as error:
                why = str(error)
            except (OSError, HTTPException) as error:  # refused, reset, cut off, too slow
                why = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt + 1 < self.config.attempts:
                self._wait(min(wait, LONGEST))
        raise UserError(f"{url} gave no answer in {self.config.attempts} attempts: {why}")

    def _wait_for_turn(self) -> None:
        if self.config.per_minute is None:
            return
        with self._turn:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + 60 / self.config.per_minute
        self._wait(mine - now)

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise UserError("asking was stopped")


class Endpoint:
    """A service that scores texts by the words of classes, and what it was asked so far."""

    def __init__(self, config: EndpointConfig, asked: LabelWordsConfig, key: str | None = None):
        self.config, self.asked, self._service = config, asked, Service(config, key)
        self.requests = self.unseen = 0

    def ask(self, befores: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "N C"], int]]:
        """For each of `befores` as it comes: log-probabilities of the classes' words behind it and each text, and how
        many tokens that took.

        Raises UserError when the service stays silent, refuses, or answers with something else.
        """
        with self._service.asking() as pool:
            for before in befores:
                jobs = [pool.submit(self._score, before + self.asked.put(text)) for text in texts]
                answers = [job.result() for job in jobs]
                self.requests += len(answers)
                missing = sum(not any_seen for _, _, any_seen in answers)
                if not self.unseen and 2 * missing > len(answers):
                    say(
                        f"in {missing} of {len(answers)} answers no class's word is among the {self.config.top} "
                        "likeliest tokens: another template or other words would tell more"
                    )
                self.unseen += missing
                yield torch.tensor([scores for scores, _, _ in answers]), sum(tokens for _, tokens, _ in answers)

    def _score(self, prompt: str) -> tuple[list[float], int, bool]:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": self.config.top}
        answer = self._service.post("/v1/completions", body, dict)
        likely = likeliest(answer, self._service.base)
        scores, found = of_words(likely, self.asked.following())
        usage = answer.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
        return scores, total if isinstance(total, int) else 0, found


def likeliest(answer: Mapping[str, Any], where: str) -> dict[str, float]:
    """Token → log-probability of those that may follow, of an answer in OpenAI's older shape or that of its chats."""
    try:
        told = answer["choices"][0]["logprobs"]
        if told is None:
            raise TypeError
        if "content" in told and "top_logprobs" not in told:
            found = {one["token"]: one["logprob"] for one in told["content"][0]["top_logprobs"]}
        else:
            found = dict(told["top_logprobs"][0])
        if not found or not all(isinstance(t, str) and -math.inf < float(p) <= 0.01 for t, p in found.items()):
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UserError(f"{where} answers without log-probabilities: it must know `logprobs`") from None
    return {token: float(value) for token, value in found.items()}


def of_words(likely: Mapping[str, float], words: Sequence[str]) -> tuple[list[float], bool]:
    """What each word got: the log-probability of the longest token that begins it and no other, and whether any did."""
    plain = [word.strip() for word in words]
    floor = min(likely.values())
    scores, found = [], False
    for n, word in enumerate(plain):
        others = [other for i, other in enumerate(plain) if i != n]
        best = ("", floor)
        for token, value in likely.items():
            piece = token.replace("\u2581", " ").replace("\u0120", " ").strip()
            if piece and word.startswith(piece) and not any(other.startswith(piece) for other in others):
                best = max(best, (piece, value), key=lambda pair: (len(pair[0]), pair[1]))
        found = found or bool(best[0])
        scores.append(best[1])
    return scores, found


def _told(error: urllib.error.HTTPError) -> str:
    """What the service says about its refusal, if it says something."""
    try:
        said = json.loads(error.read(4096))["error"]
        return f": {said['message'] if isinstance(said, dict) else said}"[:300]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
