"""A model that says what a test wants it to, run by the real engine; and a real server around it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from onefold.data.text.chat.messages import with_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from onefold.models import families
from onefold.serve.engine import Limits
from onefold.serve.queue import Queue

TEXTS = ["The capital of France is Paris. Hello there, how are you today?\n"] * 3
Script = Callable[[str], str]


@dataclass
class Seen:
    """What the model was asked to do."""

    prompts: list[str] = field(default_factory=list)  # of all requests, in order
    steps: int = 0
    interrupt_at: int = -1  # the step at which a person presses Ctrl-C


class Scripted(nn.Module):
    """Continues the text that it read (special tokens shown) with `script(text)`, then ends; greedy or not."""

    def __init__(self, tokenizer: Tokenizer, script: Script, delay: float, seen: "Seen"):
        super().__init__()
        self.tokenizer, self.script, self.delay = tokenizer, script, delay
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen = seen

    def init_state(self, batch: int, capacity: int) -> dict[str, Any]:
        return {"ids": [], "plan": None}

    def features(self, tokens: torch.Tensor, positions: Any = None, state: Any = None) -> torch.Tensor:
        state["ids"] += tokens[0].tolist()
        self.state = state
        return torch.zeros(*tokens.shape, 1)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        state = self.state
        if state["plan"] is None:
            self.seen.prompts.append(self.tokenizer.decode(state["ids"], special=True))
            said = self.tokenizer.encode(self.script(self.seen.prompts[-1]))
            state["plan"] = iter([*said, self.tokenizer.end])
        self.seen.steps += 1
        if self.seen.steps == self.seen.interrupt_at:
            raise KeyboardInterrupt
        time.sleep(self.delay)
        logits = torch.full((1, self.tokenizer.size), -1e9)
        logits[0, next(state["plan"])] = 0.0
        return logits


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return with_chat(Tokenizer.train(TEXTS, vocab=300))


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., Model]:
    def make(script: Script | str = "Paris.", delay: float = 0.0, context: int = 256, chat: bool = True) -> Model:
        known = tokenizer if chat else tokenizer.with_template(None)
        config = families.llama2("7b").but({"vocab": known.size, "context": context})
        seen = Seen()
        network = Scripted(known, script if callable(script) else lambda _: script, delay, seen)
        model = Model(Loaded(config, network, known))
        model.seen = seen
        return model

    return make


@pytest.fixture
def make_queue(make_model: Callable[..., Model]) -> Iterator[Callable[..., Queue]]:
    made: list[Queue] = []

    def make(limits: Limits | None = None, script: Script | str = "Paris.", **model: Any) -> Queue:
        known = make_model(script, **model)
        made.append(Queue(known, "tiny", limits))
        made[-1].seen = known.seen
        return made[-1]

    yield make
    for queue in made:
        queue.close(wait=5)


@pytest.fixture
def client(make_queue: Callable[..., Queue]) -> Iterator[Callable[..., Any]]:
    """`client(script=…, key=…)`: a client of the application, without a network."""
    from fastapi.testclient import TestClient

    from onefold.serve.app import create_app

    opened = []

    def make(key: str | None = None, **options: Any) -> TestClient:
        queue = make_queue(**options)
        found = TestClient(create_app(queue, key), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        found.queue = queue
        opened.append(found.__enter__())
        return found

    yield make
    for found in opened:
        found.__exit__(None, None, None)


@pytest.fixture
def serving(make_queue: Callable[..., Queue]) -> Callable[..., Any]:
    """`with serving(script=…, key=…) as url`: a real server on a free port."""
    import uvicorn

    from onefold.serve.app import create_app
    from onefold.serve.server import listen

    @contextmanager
    def serve(limits: Limits | None = None, key: str | None = None, **options: Any) -> Iterator[str]:
        listener = listen("127.0.0.1", 0)
        queue = make_queue(limits, **options)
        server = uvicorn.Server(uvicorn.Config(create_app(queue, key), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            queue.close()
            server.should_exit = True
            thread.join(10)
            listener.close()
        assert not thread.is_alive()

    return serve


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def events(response: httpx.Response) -> list[Any]:
    """The data of the server-sent events of a whole body, as the OpenAI client splits it."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def raw(url: str, payload: bytes) -> bytes:
    """Whatever the server answers to these bytes on a connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(payload)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer
