"""Running the server: the socket, the key, the greeting, and a graceful end."""

import ipaddress
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError, missing_extra
from onefold.core.progress import say
from onefold.serve.access import choose_key
from onefold.serve.engine import Engine, Limits

PATIENCE = 5  # seconds that connections get to end after Ctrl-C


def serve(
    model: Any,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    name: str | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    draft: str | None = None,
    exit: str | None = None,
) -> None:
    """Serve a model until Ctrl-C: OpenAI-compatible API under /v1; of a model that writes, a chat page at /.

    `model` is a path (anything that `onefold.load` takes) or a loaded model. `adapters`, name → where it lies, are
    further models that requests may name. `draft` and `exit`: what makes answers faster, see Model.speculate and
    Model.leave_early. `port` 0 takes any free one. On loopback no key is needed unless one is given; on a wider `host`
    one is made and printed when none is.
    """
    uvicorn = _uvicorn()
    key, made = choose_key(host, key)
    listener = listen(host, port)
    try:
        from onefold.core.device import pick  # torch takes seconds: not before the port is ours
        from onefold.infer.embedder import TextEmbedder, as_embedder
        from onefold.infer.model import as_writer, load
        from onefold.infer.text_encoder import TextEncoder
        from onefold.serve.embeddings import Vectors
        from onefold.serve.queue import Queue

        if isinstance(model, str | Path):
            name = name or model_name(model)
            say(f"loading {model} …")
            loaded = load(model, device=pick(device), adapters=adapters)
            if adapters:  # asking for the model by its own name asks for none of them
                loaded.use(next((name for name in loaded.adapters if name not in adapters), None))
            reads = isinstance(loaded, TextEmbedder | TextEncoder)
            writes = draft is not None or exit is not None
            model = (as_embedder if reads and not writes else as_writer)(loaded, model)
        elif adapters:
            raise UserError("adapters are added to a model that is opened here: give its path, or load it with them")
        if draft is not None:
            as_writer(model, name or "this model").speculate(draft)
        if exit is not None:
            as_writer(model, name or "this model").leave_early(exit)
        engine = (Vectors if isinstance(model, TextEmbedder) else Queue)(model, name or "onefold", limits)
        try:
            run(engine, listener, host, key, made, uvicorn)
        finally:
            engine.close(wait=PATIENCE)
    finally:
        listener.close()


def run(engine: Engine, listener: socket.socket, host: str, key: str | None, made: bool, uvicorn: Any) -> None:
    from onefold.serve.app import create_app

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Ctrl-C: end the answers too, or the server would wait for the longest of them."""
            super().handle_exit(sig, frame)
            self.ending.call_soon_threadsafe(engine.close)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            import asyncio

            self.ending = asyncio.get_running_loop()
            await super().startup(sockets)
            if self.started:
                print(greeting(engine, listener, host, key, made), flush=True)

    config = uvicorn.Config(
        create_app(engine, key, [host]),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=512,
        timeout_graceful_shutdown=PATIENCE,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has closed everything
        Server(config).run(sockets=[listener])
    print("stopped")


def greeting(engine: Engine, listener: socket.socket, host: str, key: str | None, made: bool) -> str:
    """What a person needs to know, a line each."""
    about, port = engine.about, listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    if _is_any(host):
        shown = socket.gethostname()
    base = f"http://{shown}:{port}"
    facts = [f"{about.name}: {about.parameters:,} parameters"]
    facts += [f"context {about.context:,}"] if about.context else []
    if about.vectors:
        facts += [f"vectors of {about.vectors} numbers"]
    elif not about.chat:
        facts += ["continues text (no chat)"]
    facts += [f"with {', '.join(about.adapters)}"] if about.adapters else []
    lines = [", ".join(facts)]
    lines += [] if about.vectors else [f"  page  {base}/" + (f"#key={key}" if made else "")]
    lines.append(f"  API   {base}/v1{'/embeddings' if about.vectors else ''}  (OpenAI-compatible)")
    if key is not None:
        lines.append(f"  key   {key}" if made else "  key   as given")
    return "\n".join([*lines, "Ctrl-C stops."])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before the model is loaded: a port in use is told at once, and nobody else takes it."""
    if not 0 <= port <= 65535:
        raise UserError(f"port={port} is not a port; choose one from 1 to 65535, or 0 for any free one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError, OverflowError):
        raise UserError(f"host={host} is not an address of this machine") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(_why(host, port, error)) from None
    return listener


def model_name(path: str | Path) -> str:
    """What the model is called in the API: the last part of its path."""
    last = Path(str(path).rstrip("/")).name or "onefold"
    return last.removesuffix(".gguf")


def _why(host: str, port: int, error: OSError) -> str:
    import errno

    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another port, for example {port + 1}, or 0 for any free one"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023, for example 8000"
    return f"could not listen on {host}:{port}: {error.strerror}"


def _is_any(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise missing_extra(error.name or "fastapi", "serve", "onefold serve") from None
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn
