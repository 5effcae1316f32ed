"""Who may talk to the server, and how much: checked in front of the application, before a body is read.

Without a key the server answers only this machine. Any web page that the user visits can also send requests to this
machine, so two more checks apply then: the Host header must name this machine (a hostile name that was re-pointed at
127.0.0.1 after the page had loaded, "DNS rebinding", does not), and a browser's Origin must be the server itself.
With a key, the key decides alone: a browser never attaches it by itself.
"""

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from typing import Any

from onefold.core.errors import UserError
from onefold.serve.engine import Limits, Refusal

OPEN_PATHS = frozenset({"/", "/health"})  # nothing secret: the page asks for the key


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def choose_key(host: str, key: str | None) -> tuple[str | None, bool]:
    """The key to require, and whether it was made here: none on loopback unless given, always one beyond."""
    if key is not None:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError("the key must be printable ASCII without spaces, at least one character")
        return key, False
    return (None, False) if is_loopback(host) else (secrets.token_urlsafe(32), True)


class Guard:
    """ASGI middleware: key or host check, then a bound on the size and the slowness of the body."""

    def __init__(self, app: Any, key: str | None, hosts: Iterable[str], limits: Limits):
        self.app, self.limits = app, limits
        self.key = None if key is None else key.encode()
        self.hosts = {"localhost", "127.0.0.1", "[::1]", *(host.lower() for host in hosts)}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            headers = {name.lower(): value for name, value in reversed(scope["headers"])}
            self._admit(scope["path"], headers)
            if scope["method"] == "POST":
                receive = await self._bounded(headers, receive)
        except Refusal as refusal:
            return await refuse(refusal, send)
        await self.app(scope, receive, send)

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.key is None:
            return self._from_here(headers)
        if path in OPEN_PATHS:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
            text = "wrong key" if given else "this server needs a key: send the header Authorization: Bearer KEY"
            raise Refusal(401, text, code="invalid_api_key")

    def _from_here(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self.hosts:
            text = f"the Host header {host!r} does not name this machine; to serve other names, start with a key"
            raise Refusal(403, text, code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise Refusal(403, "requests from other web sites are refused", code="origin_not_allowed")

    async def _bounded(self, headers: dict[bytes, bytes], receive: Any) -> Any:
        """Read the body, then hand it on in one piece; later messages (the client went away) come from `receive`."""
        most = self.limits.body_bytes
        large = Refusal(413, f"the request is larger than {most:,} bytes", code="request_too_large")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > most):
            raise large
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refusal(415, "the body must be JSON, sent with Content-Type: application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the client went away")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise large
                    more = message.get("more_body", False)
        except TimeoutError:
            text = f"the request did not arrive within {self.limits.body_seconds:g} s"
            raise Refusal(408, text, code="request_timeout") from None
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> dict:
            return whole.pop() if whole else await receive()

        return replay


async def refuse(refusal: Refusal, send: Any) -> None:
    """Answer with an error in OpenAI's shape. The connection is closed: some of the body may still be on its way."""
    from starlette.responses import JSONResponse

    response = JSONResponse(refusal.body(), refusal.status, refusal_headers(refusal) | {"Connection": "close"})

    async def nothing() -> dict:
        return {"type": "http.disconnect"}

    await response({"type": "http"}, nothing, send)


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
