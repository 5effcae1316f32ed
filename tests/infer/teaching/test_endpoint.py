"""A service behind HTTP: what it says is read right, and what it fails at is tried again or told."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.label_words import LabelWordsConfig
from onefold.infer.teaching.endpoint import Endpoint, EndpointConfig, of_words
from tests.infer.service import serving

ASKED = LabelWordsConfig(template="{text} is", words={"hot": "warm", "icy": "cold"})


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr("onefold.infer.teaching.endpoint.FIRST_WAIT", 0.001)
    with serving() as service:
        yield service


def endpoint(service, key=None, **changes) -> Endpoint:
    return Endpoint(EndpointConfig(url=service.url + "/v1", model="tiny", **changes), ASKED, key)


def test_a_service_is_asked_as_openai_has_it(service):
    ((scores, tokens),) = endpoint(service, key="secret").ask([""], ["a red thing", "a blue one"])
    torch.testing.assert_close(scores, torch.tensor([[-0.95, -1.05], [-1.05, -0.95]]))
    assert tokens == 14
    assert service.keys == {"Bearer secret"}
    assert {"prompt": "a red thing is", "max_tokens": 1, "temperature": 0, "logprobs": 20, "model": "tiny"} in (
        service.seen
    )


@pytest.mark.parametrize(
    "fault",
    [
        (503, {}, b"busy"),
        (429, {"Retry-After": "0"}, b"{}"),
        (200, {}, b"<html>"),
        (200, {}, b"[1]"),
        (200, {"Content-Length": "99"}, b'{"choices"'),
    ],
)
def test_what_passes_is_tried_again(service, fault):
    service.faults = [fault] * 3
    ((scores, _),) = endpoint(service, parallel=1).ask([""], ["a red thing"])
    assert scores[0, 0] > scores[0, 1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((401, {}, b'{"error": {"message": "who are you?"}}'), "refuses: status 401: who are you?; give its key"),
        ((404, {}, b"gone"), "status 404; is there a model of that name"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "status 302"),
        ((200, {}, b'{"choices": [{"text": "warm", "logprobs": null}]}'), "without log-probabilities"),
        ((200, {}, b'{"choices": [{"logprobs": {"top_logprobs": [{" a": NaN}]}}]}'), "without log-probabilities"),
        ((200, {}, b'{"choices": []}'), "without log-probabilities"),
    ],
)
def test_what_does_not_pass_is_told_at_once(service, fault, message):
    service.faults = [fault]
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        list(endpoint(service, parallel=1).ask([""], ["a red thing"]))
    assert not service.faults
    assert not service.seen


def test_a_service_that_is_down_is_told(service):
    service.limit = 0
    with pytest.raises(UserError, match="no answer in 2 attempts"):
        list(endpoint(service, attempts=2).ask([""], ["a"]))
    service.shutdown()
    service.server_close()
    with pytest.raises(UserError, match="refused"):
        list(endpoint(service, attempts=2).ask([""], ["a"]))
    with pytest.raises(UserError, match="no address"):
        Endpoint(EndpointConfig(url="localhost:8000"), ASKED)


def test_a_key_is_sent_without_what_surrounds_it_and_is_never_shown(service):
    list(endpoint(service, key=" secret\r\n").ask([""], ["a"]))
    assert service.keys == {"Bearer secret"}
    for key in ("sec\nret", "s\u00e9cret"):
        with pytest.raises(UserError, match="the key holds") as told:
            endpoint(service, key=key)
        assert key not in str(told.value)


def test_a_word_gets_the_longest_token_that_only_it_begins_with():
    likely = {" war": -1.0, " warm": -2.0, "\u0120co": -3.0, " c": -0.1, " the": -4.0}
    assert of_words(likely, [" warm", " cold"]) == ([-2.0, -3.0], True)
    assert of_words(likely, [" cool", " cold"]) == ([-4.0, -4.0], False)  # "co" begins both
    assert of_words({"\u2581warm": -1.5, "x": -2.0}, [" warm", " cold"]) == ([-1.5, -2.0], True)
