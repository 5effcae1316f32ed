"""The OpenAI wire format, as the OpenAI clients read it."""

import pytest

from tests.serve.conftest import ask, events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def test_models_lists_the_one_model_and_what_the_page_needs(client):
    answer = client(context=128).get("/v1/models").json()
    assert answer["object"] == "list"
    (model,) = answer["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "onefold")
    assert isinstance(model["created"], int)
    assert (model["context_length"], model["chat"]) == (128, True)


def test_one_model_by_name(client):
    http = client()
    assert http.get("/v1/models/tiny").json()["id"] == "tiny"
    missing = http.get("/v1/models/gpt-4")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_chat_completion_has_openai_s_shape_and_true_counts(client, tokenizer):
    http = client(script="Paris.")
    answer = http.post(CHAT, json=ask("The capital of France?", model="tiny")).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    prompt = len(tokenizer.encode("<|user|>The capital of France?<|end|><|assistant|>", special=True))
    said = len(tokenizer.encode("Paris."))
    prompt += len(tokenizer.prefix)  # the template's bos_token
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def test_chat_stream_is_chunks_then_done(client):
    http = client(script="Hello there, how are you today?")
    response = http.post(CHAT, json=ask("hi", stream=True))
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    first, *middle, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in middle) == "Hello there, how are you today?"
    assert len(middle) > 3
    assert all(choice["finish_reason"] is None for choice in [first, *middle])
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert "usage" not in chunks[0]


def test_usage_in_a_stream_when_asked_for(client, tokenizer):
    http = client(script="Paris.")
    *chunks, last, done = events(http.post(CHAT, json=ask("hi", stream=True, stream_options={"include_usage": True})))
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(tokenizer.encode("Paris."))
    assert all(chunk["usage"] is None for chunk in chunks)


def test_text_completion_whole_and_streamed(client):
    http = client(script=" Paris.")
    answer = http.post(TEXT, json={"prompt": "The capital of France is", "echo": True}).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": "The capital of France is Paris.", "logprobs": None, "finish_reason": "stop"}
    ]
    *chunks, done = events(http.post(TEXT, json={"prompt": ["The capital"], "stream": True}))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " Paris."
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_text_completion_is_sixteen_tokens_unless_told(client):
    http = client(script="a b c d e f g h i j k l m n o p q r s t u v w x y z")
    answer = http.post(TEXT, json={"prompt": "x"}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_by_either_name(client, name):
    answer = client(script="Hello there, how are you").post(CHAT, json=ask("hi", **{name: 2})).json()
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", [" how", ["zebra", " how"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer_and_are_not_part_of_it(client, stop, stream):
    response = client(script="Hello there, how are you").post(CHAT, json=ask("hi", stop=stop, stream=stream))
    if stream:
        *chunks, _ = events(response)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text, finish) == ("Hello there,", "stop")


def test_sampling_reaches_the_model_and_null_means_default(client, monkeypatch):
    http = client()
    seen = []
    begin = http.queue._model.begin
    monkeypatch.setattr(http.queue._model, "begin", lambda p, s, **more: seen.append(s) or begin(p, s, **more))
    given = {"temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": "x", "top_k": 5, "min_p": 0.1, "max_tokens": 7}
    assert http.post(CHAT, json=ask("hi", **given)).status_code == 200
    assert http.post(CHAT, json=ask("hi", **dict.fromkeys(given))).status_code == 200
    set_, unset = seen
    assert (set_.temperature, set_.top_p, set_.top_k, set_.min_p) == (0.5, 0.9, 5, 0.1)
    assert (set_.stop, set_.max_new_tokens, set_.seed) == (("x",), 7, 2**64 - 1)
    assert (unset.temperature, unset.top_p, unset.seed) == (1.0, None, None)  # OpenAI's defaults


def test_content_parts_and_the_developer_s_role(client):
    http = client(script=lambda text: text)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    http.post(CHAT, json={"messages": messages})
    read = http.queue.seen.prompts[0]
    assert "<|system|>Be brief.<|end|><|user|>one two<|end|><|assistant|>" in read


def test_a_turn_of_the_assistant_may_come_back_as_the_client_got_it(client):
    http = client()
    first = http.post(CHAT, json=ask("hi")).json()["choices"][0]["message"]
    extra = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    again = [{"role": "user", "content": "hi"}, {**first, **extra}, {"role": "user", "content": "and?"}]
    assert http.post(CHAT, json={"messages": again}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n", 2, "n must be 1"),
        ("logprobs", True, "logprobs is not supported"),
        ("tools", [{"type": "function"}], "tools is not supported"),
        ("response_format", {"type": "json_object"}, "response_format is not supported"),
        ("logit_bias", {"5": 1}, "logit_bias is not supported"),
        ("presence_penalty", 0.5, "presence_penalty is not supported"),
        ("temprature", 0.5, "did you mean temperature?"),
        ("temperature", "0.5", "valid number"),
        ("temperature", 2.5, "less than or equal to 2"),
        ("top_p", 0, "greater than 0"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_tokens", 1.5, "integer"),
        ("stream", "yes", "boolean"),
        ("stop", ["a"] * 17, "at most 16"),
        ("stop", "", "at least 1"),
        ("seed", 2**70, ""),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line_that_names_the_field(client, field, value, said):
    response = client().post(CHAT, json=ask("hi", **{field: value}))
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0] == field
    assert said in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "harmless",
    [{"n": 1}, {"logprobs": False}, {"tools": []}, {"user": "me"}, {"logit_bias": None}, {"metadata": {"a": "b"}}],
)
def test_options_that_ask_for_nothing_are_accepted(client, harmless):
    assert client().post(CHAT, json=ask("hi", **harmless)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_wrong_messages_name_their_place(client, body, param):
    response = client().post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client):
    error = client(context=16).post(CHAT, json=ask("word " * 100)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "at most 16" in error["message"]


def test_an_answer_ends_with_the_context(client, tokenizer):
    http = client(context=32, script="abc " * 100)
    answer = http.post(TEXT, json={"prompt": "abc abc", "max_tokens": 10_000}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] <= 33  # the last token is never read


def test_a_model_without_chat_template_only_continues_text(client):
    http = client(chat=False, script=" Paris.")
    assert http.get("/v1/models").json()["data"][0]["chat"] is False
    refused = http.post(CHAT, json=ask("hi"))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_chat_template"
    assert "/v1/completions" in refused.json()["error"]["message"]
    assert http.post(TEXT, json={"prompt": "The capital"}).json()["choices"][0]["text"] == " Paris."


def test_another_model_s_name_is_refused(client):
    response = client().post(CHAT, json=ask("hi", model="gpt-4"))
    assert response.status_code == 404
    assert "'tiny'" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("get", "/v1/nothing", 404), ("get", CHAT, 405)])
def test_unknown_places_answer_in_the_same_shape(client, method, path, status):
    response = getattr(client(), method)(path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_health(client):
    assert client().get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_failing_model_is_an_error_and_the_next_request_works(client, caplog):
    def script(text):
        if "fail" in text:
            raise RuntimeError("secret detail")
        return "fine"

    http = client(script=script)
    whole = http.post(CHAT, json=ask("fail"))
    assert whole.status_code == 500
    assert "secret" not in whole.text
    assert whole.json()["error"]["type"] == "server_error"
    *_, error, done = events(http.post(CHAT, json=ask("fail", stream=True)))
    assert error["error"]["type"] == "server_error"
    assert done == "[DONE]"
    assert http.post(CHAT, json=ask("hi")).json()["choices"][0]["message"]["content"] == "fine"
    assert "secret detail" in caplog.text


def test_another_engine_fits_without_touching_the_application(tokenizer):
    """The seam: anything with the methods of `Engine` serves, here one that answers without a model or a thread."""
    from fastapi.testclient import TestClient

    from onefold.serve.app import create_app
    from onefold.serve.engine import About, Limits, Piece

    class Echo:
        prompt_tokens = 1

        def __init__(self, text):
            self.text = text

        async def __aiter__(self):
            yield Piece(self.text, 1)
            yield Piece("!", 2, "stop")

        def cancel(self):
            pass

    class Batched:
        about, limits = About("echo", 0, None, True, 0), Limits()

        async def submit(self, job):
            return Echo(job.messages[-1]["content"])

        def load(self):
            return {"running": 0, "waiting": 0}

        def close(self, wait=0.0):
            pass

    http = TestClient(create_app(Batched()), base_url="http://localhost")
    assert http.post(CHAT, json=ask("hi")).json()["choices"][0]["message"]["content"] == "hi!"


def test_completions_tell_log_probabilities_as_openai_does(client, make_model):
    """Of every token what the model gave it, whatever was sampled, and of the likeliest in its place."""
    http = client(script=" Paris. Hello", context=64)
    answer = http.post(TEXT, json={"prompt": "of France is", "logprobs": 3, "max_tokens": 4, "temperature": 0}).json()
    (choice,) = answer["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert told["tokens"][0].startswith(" ")
    assert told["text_offset"] == [len("".join(told["tokens"][:n])) for n in range(4)]
    for token, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"]):
        assert 0 < len(top) <= 3
        assert value == pytest.approx(top[token], abs=1e-6) == pytest.approx(0.0, abs=1e-4)
        assert list(top.values()) == sorted(top.values(), reverse=True)
    assert len(told["tokens"]) == answer["usage"]["completion_tokens"] == 4
    assert http.post(TEXT, json={"prompt": "is", "max_tokens": 1}).json()["choices"][0]["logprobs"] is None
    assert http.post(TEXT, json={"prompt": "is", "max_tokens": 1, "logprobs": False}).status_code == 200
    for more in ({"stream": True}, {"echo": True}, {"logprobs": 1000}):
        refused = http.post(TEXT, json={"prompt": "is", "logprobs": 1, **more})
        assert refused.status_code == 400
        assert "logprobs" in refused.json()["error"]["message"]
