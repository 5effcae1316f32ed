"""/v1/embeddings answers as OpenAI's does, with the vectors that the model itself makes."""

import base64
import threading

import numpy as np
import pytest
import torch

from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.infer.embedder import TextEmbedder
from onefold.interop.loaded import Loaded
from onefold.models import encoder_families as families
from onefold.models.embedder import embedder_of
from onefold.serve.app import create_app
from onefold.serve.embeddings import Vectors
from onefold.serve.engine import Limits
from onefold.serve.server import greeting, listen

TEXTS = ["a server of vectors", "answers", "as others do " * 3]
WIDTH, CONTEXT = 24, 32


@pytest.fixture(scope="module")
def model() -> TextEmbedder:
    tokenizer = Tokenizer.train([__doc__] * 3, 300, special=ENCODER_TOKENS)
    shape = {"width": WIDTH, "depth": 1, "block.mixer.heads": 2, "block.ffn.width": 32}
    trunk = families.bert().but({"vocab": 300, "context": CONTEXT, "embed.position.context": CONTEXT, **shape})
    config = embedder_of(trunk)
    torch.manual_seed(0)
    return TextEmbedder(Loaded(config, config.build(), tokenizer))


@pytest.fixture
def client(model):
    from fastapi.testclient import TestClient

    engine = Vectors(model, "tiny")
    with TestClient(create_app(engine), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        found.engine = engine
        yield found
    engine.close(wait=5)


def ask(client, given, **more):
    return client.post("/v1/embeddings", json={"input": given, **more})


def test_vectors_are_those_of_the_model(client, model):
    whole = ask(client, TEXTS, model="tiny", dimensions=WIDTH, user="me").json()
    assert [row["index"] for row in whole["data"]] == [0, 1, 2]
    np.testing.assert_allclose([row["embedding"] for row in whole["data"]], model.embed(TEXTS), atol=1e-6)
    tokens = sum(map(len, model.encode(TEXTS)))
    assert whole["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (whole["object"], whole["model"], whole["data"][0]["object"]) == ("list", "tiny", "embedding")
    packed = ask(client, TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), model.embed(TEXTS[:1])[0], atol=1e-6)
    ids = model.encode(TEXTS)
    for given in (ids, ids[0]):
        found = ask(client, given).json()["data"]
        np.testing.assert_allclose(found[0]["embedding"], model.embed(TEXTS[:1])[0], atol=1e-6)


def test_texts_that_are_too_long_are_refused_or_cut(client, model):
    long = "vectors " * 60
    answer = ask(client, ["short", long])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "input.1"
    cut = ask(client, long, truncate_prompt_tokens=-1).json()
    np.testing.assert_allclose(cut["data"][0]["embedding"], model.embed([long])[0], atol=1e-6)
    assert cut["usage"]["prompt_tokens"] == CONTEXT


@pytest.mark.parametrize(
    ("given", "more", "status", "says"),
    [
        ("", {}, 400, "input.0 is empty"),
        ([], {}, 400, "input must be a text"),
        ([["a"]], {}, 400, "a text or a list of token ids"),
        (["a", [1]], {}, 400, "mixes"),
        ([True], {}, 400, "a text or a list of token ids"),
        ([300], {}, 400, "between 0 and 299"),
        (["a"] * 2049, {}, 400, "at most 2,048"),
        ("a", {"dimensions": 8}, 400, "24 numbers"),
        ("a", {"model": "other"}, 404, "is not served here"),
        ("a", {"input_type": "nothing"}, 400, "only query, document"),
        ("a", {"unknown": 1}, 400, "unknown"),
        ("a", {"encoding_format": "xml"}, 400, "encoding_format"),
    ],
)
def test_mistakes_are_told_in_a_line(client, given, more, status, says):
    answer = ask(client, given, **more)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert client.engine.load() == {"running": 0, "waiting": 0}


def test_an_embedder_has_no_chat(client):
    assert client.get("/").json()["endpoints"][0] == "/v1/embeddings"
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 404
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    listener = listen("127.0.0.1", 0)
    told = greeting(client.engine, listener, "127.0.0.1", None, False)
    listener.close()
    assert "vectors of 24 numbers" in told
    assert "page" not in told


def test_the_line_is_bounded_and_the_key_is_asked_for(model):
    from fastapi.testclient import TestClient

    engine = Vectors(model, "tiny", Limits(waiting=0))
    held, free = threading.Event(), threading.Event()

    def hold(*_):
        held.set()
        free.wait(10)
        return np.zeros((1, WIDTH), np.float32), 1

    engine._answer = hold
    with TestClient(create_app(engine, key="secret"), base_url="http://127.0.0.1:8000") as client:
        assert ask(client, "a").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        first = threading.Thread(target=ask, args=(client, "a"))
        first.start()
        assert held.wait(10)
        refused = ask(client, "a")
        free.set()
        first.join()
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert ask(client, "a").status_code == 200
    engine.close(wait=5)
