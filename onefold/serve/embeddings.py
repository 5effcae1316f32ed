"""Serving vectors of texts: OpenAI's /v1/embeddings, answered by one worker thread behind a bounded line.

https://platform.openai.com/docs/api-reference/embeddings. Beyond it: `input_type` says what the texts are (query or
document, say), and `truncate_prompt_tokens` cuts long ones, as vLLM names it; otherwise they are refused.
"""

import asyncio
import base64
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from onefold.core.errors import UserError
from onefold.infer.embedder import TextEmbedder
from onefold.serve import wire
from onefold.serve.clients import unless_gone
from onefold.serve.engine import About, Limits, Refusal

MOST_INPUTS = 2048  # of one request, as OpenAI bounds it
BODY_BYTES = 2**24  # of one request: so many texts of two thousand tokens
PART = 64  # texts computed between two looks at whether anybody still waits

log = logging.getLogger(__name__)


class EmbeddingBody(wire.Strict):
    """A request. `input`: a text, texts, token ids, or lists of them."""

    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
    input_type: Annotated[str, Field(max_length=100)] | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)


class Vectors:
    """The engine: `embed` waits in line for the one thread that owns the model."""

    def __init__(self, model: TextEmbedder, name: str, limits: Limits | None = None):
        self.limits = limits or Limits(body_bytes=BODY_BYTES)
        config, count = model.config, model.parameters_count
        self.about = About(name, count, config.length, False, int(time.time()), vectors=config.width)
        self.model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onefold-model")
        self._lock = threading.Lock()
        self._inside = 0  # requests that wait or are answered
        self._closed = False

    async def embed(self, body: EmbeddingBody) -> tuple[np.ndarray, int]:
        """Vectors Float32[N, E] and how many tokens were read; Refusal when there is no room, or texts do not fit."""
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is shutting down", "server_error", "shutting_down", retry_after=5)
            if self._inside > self.limits.waiting:
                text = f"{self._inside - 1} requests are waiting already; try again in 1 s"
                raise Refusal(429, text, "rate_limit_error", "rate_limit_exceeded", retry_after=1)
            self._inside += 1
        gone = threading.Event()

        try:
            work = self._thread.submit(self._answer, body, lambda: gone.is_set() or self._closed)
            async with asyncio.timeout(self.limits.answer_seconds):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            text = f"not answered within {self.limits.answer_seconds:g} s; send fewer texts at once"
            raise Refusal(504, text, "server_error", "timeout") from None
        except UserError as error:
            raise Refusal(400, str(error)) from None
        except (Refusal, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("the model failed on a request")
            text = "the model failed on this request; the server's log says why"
            raise Refusal(500, text, "server_error") from None
        finally:
            gone.set()
            with self._lock:
                self._inside -= 1

    def load(self) -> dict[str, int]:
        with self._lock:
            return {"running": min(1, self._inside), "waiting": max(0, self._inside - 1)}

    def close(self, wait: float = 0.0) -> None:
        """Take no more requests, and give up those that are inside."""
        self._closed = True
        self._thread.shutdown(wait=bool(wait))

    def _answer(self, body: EmbeddingBody, given_up: Callable[[], bool]) -> tuple[np.ndarray, int]:
        ids = self._ids(body)
        found = np.empty((len(ids), self.model.config.width), np.float32)
        for start in range(0, len(ids), PART):
            if given_up():
                raise Refusal(503, "given up", "server_error")
            found[start : start + PART] = self.model.embed_ids(ids[start : start + PART]).numpy()
        return found, sum(map(len, ids))

    def _ids(self, body: EmbeddingBody) -> list[list[int]]:
        """What the model reads; a mistake is a Refusal that names the place."""
        most = self.model.config.length
        cut = body.truncate_prompt_tokens
        texts, rows = _inputs(body.input)
        if texts:
            # One token more than fits tells texts that are too long, without encoding all of them.
            rows = self.model.encode(texts, body.input_type, None if cut is not None else most + 1)
        vocab = self.model.config.trunk.vocab
        for n, row in enumerate(rows):
            where = "input" if len(rows) == 1 else f"input.{n}"
            if not texts and not all(0 <= token < vocab for token in row):
                raise Refusal(400, f"{where}: token ids must lie between 0 and {vocab - 1}", param=where)
            if cut is None and len(row) > most:
                text = f"{where} has more than the {most:,} tokens that the model reads; set truncate_prompt_tokens=-1"
                raise Refusal(400, text, code="context_length_exceeded", param=where)
        if cut is None:
            return rows
        limit = most if cut < 1 else min(cut, most)
        return self.model.encode(texts, body.input_type, limit) if texts else [row[:limit] for row in rows]


def _inputs(given: Any) -> tuple[list[str], list[list[int]]]:
    """(texts, rows of ids), one of which is empty."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and given and all(type(x) is int for x in given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refusal(
            400, "input must be a text, a list of texts, token ids, or a list of lists of them", param="input"
        )
    if len(given) > MOST_INPUTS:
        raise Refusal(400, f"input has {len(given):,} texts; at most {MOST_INPUTS:,} fit a request", param="input")
    for n, one in enumerate(given):
        if not one:
            raise Refusal(400, f"input.{n} is empty", param=f"input.{n}")
        if not isinstance(one, str) and not (isinstance(one, list) and all(type(x) is int for x in one)):
            raise Refusal(400, f"input.{n} must be a text or a list of token ids", param=f"input.{n}")
    texts = [one for one in given if isinstance(one, str)]
    if texts and len(texts) != len(given):
        raise Refusal(400, "input mixes texts and token ids", param="input")
    return texts, [] if texts else given


def add_routes(app: FastAPI, engine: Vectors) -> None:
    """/v1/embeddings, and at / what there is instead of a page."""

    @app.get("/")
    async def index() -> dict[str, Any]:
        return {"model": engine.about.name, "endpoints": ["/v1/embeddings", "/v1/models", "/health"]}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = wire.parse(EmbeddingBody, await request.body())
        wire.check_model(body.model, engine.about.name)
        width = engine.model.config.width
        if body.dimensions not in (None, width):
            text = f"this model's vectors have {width} numbers, and were not trained to be cut"
            raise Refusal(400, text, param="dimensions")
        vectors, tokens = await unless_gone(engine.embed(body), request)
        return JSONResponse(_reply(vectors, tokens, body, engine.about.name), headers={"Cache-Control": "no-store"})


def _reply(vectors: np.ndarray, tokens: int, body: EmbeddingBody, model: str) -> dict[str, Any]:
    packed = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": n, "embedding": _packed(vector) if packed else vector.tolist()}
        for n, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(vector: np.ndarray) -> str:
    """Little-endian Float32, as OpenAI's clients unpack it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
