"""The HTTP application: an OpenAI-compatible API and the chat page, around any `Engine`, or one of vectors."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from onefold.serve import page, wire
from onefold.serve.access import Guard, refusal_headers
from onefold.serve.clients import unless_gone
from onefold.serve.embeddings import Vectors
from onefold.serve.embeddings import add_routes as add_vectors
from onefold.serve.engine import Answer, Engine, Refusal

HEARTBEAT = 10.0  # seconds of silence after which a stream sends a comment, so that proxies do not give it up


def create_app(engine: Engine | Vectors, key: str | None = None, hosts: Iterable[str] = ()) -> FastAPI:
    """The application around an engine.

    `key` None: only requests addressed to this machine (or one of `hosts`) are answered, see `access`. `hosts` are
    further names, without port, under which the server is reached.
    """
    app = FastAPI(title="Onefold", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    _add_routes(app, engine)
    app.add_middleware(Guard, key=key, hosts=hosts, limits=engine.limits)
    return app


def _add_routes(app: FastAPI, engine: Engine | Vectors) -> None:
    name = engine.about.name

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **engine.load()}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": wire.cards(engine.about)}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        wire.check_model(model, name, engine.about.adapters)
        return next(card for card in wire.cards(engine.about) if card["id"] == model)

    if isinstance(engine, Vectors):
        add_vectors(app, engine)
    else:
        _add_completions(app, engine)


def _add_completions(app: FastAPI, engine: Engine) -> None:
    html, policy = page.build()
    name = engine.about.name

    @app.get("/")
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
        return HTMLResponse(html, headers=headers | {"X-Content-Type-Options": "nosniff"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = wire.parse(wire.ChatBody, await request.body())
        if not engine.about.chat:
            text = f"{name} has no chat template, so it takes no turns; /v1/completions lets it continue a text"
            raise Refusal(400, text, code="no_chat_template")
        return await _answer(engine, body, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(engine, wire.parse(wire.TextBody, await request.body()), request)


async def _answer(engine: Engine, body: wire.ChatBody | wire.TextBody, request: Request) -> Response:
    adapter = wire.chosen_adapter(body, engine.about)
    answer = await engine.submit(body.job(adapter))
    reply = wire.Reply(body, adapter or engine.about.name, answer.prompt_tokens)
    if body.stream:
        return EventStream(answer, _events(answer, reply))
    try:
        whole = await unless_gone(_collect(answer, reply), request)
    finally:
        answer.cancel()
    return JSONResponse(whole, headers={"Cache-Control": "no-store"})


async def _collect(answer: Answer, reply: wire.Reply) -> dict[str, Any]:
    texts = []
    async for piece in answer:
        texts.append(piece.text)
        if piece.finish:
            return reply.whole("".join(texts), piece)
    raise Refusal(500, "the answer ended early", "server_error")


class EventStream(StreamingResponse):
    """Server-sent events of one answer, which is given up when the client goes away, wherever that is noticed."""

    def __init__(self, answer: Answer, events: AsyncIterator[str]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter: nginx must not collect events
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.cancel()


async def _events(answer: Answer, reply: wire.Reply) -> AsyncIterator[str]:
    if opening := reply.first():
        yield opening
    pieces = aiter(answer)
    coming = asyncio.ensure_future(anext(pieces))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=HEARTBEAT))[0]:
                yield ": still working\n\n"
                continue
            piece = coming.result()
            if events := reply.piece(piece):
                yield events
            if piece.finish:
                break
            coming = asyncio.ensure_future(anext(pieces))
    except Refusal as refusal:  # the status line is long gone; clients look for `error` in an event
        yield wire.event(refusal.body())
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, Refusal):  # an iterator is closed only when its last step has ended
            await coming
    yield wire.DONE


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.body(), refusal.status, refusal_headers(refusal))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path[:200]} here", 405: f"{request.method} is not allowed here"}
    refusal = Refusal(error.status_code, text.get(error.status_code, error.detail))
    return JSONResponse(refusal.body(), refusal.status, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(Refusal(500, "the server failed; its log says why", "server_error").body(), 500)
