"""Starting and stopping: the port, the greeting, Ctrl-C."""

import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from onefold.core.errors import UserError
from onefold.serve import server
from onefold.serve.engine import About, Limits

CHILD = """
import sys, torch
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from onefold.models import families
from onefold.serve.server import serve

tokenizer = Tokenizer.train(["the cat sat on the mat"] * 9, vocab=270)
small = {"vocab": tokenizer.size, "width": 32, "depth": 1, "context": 100_000, "block.mixer.heads": 2,
         "block.mixer.kv_heads": 2, "block.ffn.width": 64}
torch.manual_seed(0)
config = families.llama2("7b").but(small)
serve(Model(Loaded(config, config.build(), tokenizer)), port=0, name="child", host=sys.argv[1])
"""


def test_a_port_in_use_is_one_clear_line_before_the_model_is_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use; .* {port + 1}") as error:
            server.serve("no/such/model", port=port)
    assert "\n" not in str(error.value)


def test_a_reserved_port_is_taken_for_others_too():
    with server.listen("127.0.0.1", 0) as first, pytest.raises(UserError, match="in use"):
        server.listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("not.a.host.invalid", 8000), ("203.0.113.7", 8000), ("127.0.0.1", 99999)])
def test_an_address_that_is_not_ours_is_one_line(host, port):
    with pytest.raises(UserError) as error:
        server.listen(host, port)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/quickstart/", "quickstart"),
        ("a/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("org/name", "name"),
        (".", "onefold"),
    ],
)
def test_the_model_is_called_after_its_path(path, name):
    assert server.model_name(path) == name


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'onefold\[serve\]'"):
        server.serve("no/such/model")


class Engine:
    about, limits = About("tiny", 1_234_567, 512, True, 0), Limits()


def test_the_greeting_has_the_addresses_and_a_made_key():
    with server.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        plain = server.greeting(Engine(), listener, "127.0.0.1", None, False)
        keyed = server.greeting(Engine(), listener, "127.0.0.1", "made-here", True)
        given = server.greeting(Engine(), listener, "127.0.0.1", "the-user-s", False)
    assert f"http://127.0.0.1:{port}/\n" in plain
    assert f"http://127.0.0.1:{port}/v1" in plain
    assert "1,234,567 parameters" in plain
    assert "key" not in plain
    assert f"http://127.0.0.1:{port}/#key=made-here" in keyed
    assert "the-user-s" not in given  # it is in nobody's log that did not have it before


def test_a_wide_address_wants_the_key_it_printed_and_ctrl_c_ends_everything_at_once():
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "0.0.0.0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        while "Ctrl-C" not in said:
            said += (line := child.stdout.readline())
            assert line, said
        port = said.split("/#key=")[0].rsplit(":", 1)[1]
        key = next(line.split()[1] for line in said.splitlines() if line.strip().startswith("key"))
        url, headers = f"http://127.0.0.1:{port}/v1/", {"Authorization": f"Bearer {key}"}
        assert httpx.get(url + "models").status_code == 401
        assert httpx.get(url + "models", headers=headers).json()["data"][0]["id"] == "child"

        body = {"prompt": "the cat", "max_tokens": 16000, "stream": True}
        with httpx.stream("POST", url + "completions", json=body, headers=headers, timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data: ")]
        assert "shutting down" in rest[-2]
        assert rest[-1] == "data: [DONE]"
        out, _ = child.communicate(timeout=10)
        assert time.monotonic() - began < 8
        assert child.returncode == 0
        assert out.strip() == "stopped"
    finally:
        child.kill()


def test_this_server_is_an_endpoint_that_classes_are_asked_of(serving):
    from onefold.infer.label_words import LabelWordsConfig
    from onefold.infer.teaching.endpoint import Endpoint, EndpointConfig

    asked = LabelWordsConfig(template="{text} is", words={"fr": "Paris", "de": "Hello"})
    with serving(script=lambda text: " Paris" if "France" in text else " Hello", key="k") as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="tiny"), asked, "k")
        ((scores, tokens),) = endpoint.ask(["how are you\n"], ["The capital of France", "a day", "of France"])
    assert scores.argmax(1).tolist() == [0, 1, 0]
    assert tokens > 3
