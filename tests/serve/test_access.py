"""Who may talk to the server."""

import pytest

from onefold.core.errors import UserError
from onefold.serve.access import choose_key, is_loopback
from tests.serve.conftest import ask

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    assert is_loopback(host)
    assert choose_key(host, None) == (None, False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org", "127.1.evil"]
)
def test_anything_wider_gets_a_key_that_nobody_guesses(host):
    assert not is_loopback(host)
    key, made = choose_key(host, None)
    assert made
    assert len(key) >= 43  # 32 random bytes
    assert key != choose_key(host, None)[0]


def test_a_given_key_is_used_on_loopback_too():
    assert choose_key("127.0.0.1", "mine") == ("mine", False)


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(UserError, match="key"):
        choose_key("0.0.0.0", key)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/unknown", "/openapi.json"])
def test_with_a_key_nothing_is_told_without_it(client, path):
    http = client(key="right")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "right"},
        {"Authorization": "Basic right"},
    ):
        response = http.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_the_right_key_opens(client):
    http = client(key="right")
    for value in ("Bearer right", "bearer right"):
        assert http.get("/v1/models", headers={"Authorization": value}).status_code == 200
        assert http.post(CHAT, json=ask("hi"), headers={"Authorization": value}).status_code == 200
    odd = [(b"authorization", b"Bearer \xff\xfe")]
    assert http.get("/v1/models", headers=odd).status_code == 401


def test_the_page_and_health_are_open_and_hold_no_secret(client):
    http = client(key="right-key-0123")
    for path in ("/", "/health"):
        response = http.get(path)
        assert response.status_code == 200
        assert "right-key-0123" not in response.text


def test_with_a_key_any_host_name_will_do(client):
    headers = {"Authorization": "Bearer right", "Host": "models.example.org", "Origin": "https://models.example.org"}
    assert client(key="right").get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8000", "[::1]:8000", "LocalHost:1"])
def test_this_machine_s_names_are_answered(client, host):
    assert client().get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "", "[::1"])
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_a_name_re_pointed_at_this_machine_is_refused(client, host, path):
    response = client().get(path, headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost.evil:8000"]
)
def test_other_web_sites_are_refused(client, origin):
    http = client()
    response = http.post(CHAT, json=ask("hi"), headers={"Origin": origin})
    assert response.status_code == 403
    assert http.queue.seen.prompts == []


def test_the_page_s_own_requests_are_answered_but_no_other_origin_is_ever_allowed(client):
    http = client()
    response = http.post(CHAT, json=ask("hi"), headers={"Origin": "http://127.0.0.1:8000"})
    assert response.status_code == 200
    preflight = http.options(CHAT, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 403
    for answer in (response, preflight):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_on_another_site_could_send_is_refused(client, kind):
    response = client().post(CHAT, content=b'{"messages": []}', headers={"Content-Type": kind})
    assert response.status_code == 415
