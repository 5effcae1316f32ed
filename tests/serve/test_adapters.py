"""Several adapters on one served model: a request names the one it wants, as a model or by `adapter`."""

import pytest
import torch

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.prompts import PrefixTuningConfig
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from onefold.models.embed import EmbedConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.position import LearnedPositionConfig
from onefold.serve.queue import Queue
from tests.serve.conftest import ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    block = BlockConfig(mixer=AttentionConfig(heads=2), ffn=GatedMLPConfig(width=32))
    config = DecoderConfig(vocab=tokenizer.size, width=16, depth=2, context=64, block=block)
    network = config.build()
    for name, dora in (("poet", False), ("clerk", True)):
        LoRAConfig(rank=4, dora=dora, targets=("mixer.*", "ffn.out")).apply(network, name)
    for name, parameter in network.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_()
        elif name.endswith("magnitude"):
            parameter.data *= 20
    return Model(Loaded(config, network, tokenizer))


def test_an_adapter_is_what_a_model_with_it_merged_would_be(model, tmp_path):
    from onefold.infer.model import load

    written = {}
    for name in (None, "poet", "clerk"):
        model.use(name)
        written[name] = model.generate("The capital", temperature=0, max_new_tokens=8)
        model.save(tmp_path / str(name))
        assert load(tmp_path / str(name)).generate("The capital", temperature=0, max_new_tokens=8) == written[name]
        assert not load(tmp_path / str(name)).adapters
    assert len({*written.values()}) == 3
    assert (model.adapters, model.adapter) == (["poet", "clerk"], "clerk")


def test_requests_say_which_one_answers(model):
    from fastapi.testclient import TestClient

    from onefold.serve.app import create_app

    wanted = {}
    for name in (None, "poet", "clerk"):
        model.use(name)
        wanted[name] = model.generate("The capital", temperature=0, max_new_tokens=8)
    model.use(None)
    queue = Queue(model, "tiny")
    with TestClient(create_app(queue), base_url="http://127.0.0.1:8000") as http:
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["tiny", "poet", "clerk"]
        assert http.get("/v1/models/poet").json()["parent"] == "tiny"
        body = {"prompt": "The capital", "temperature": 0, "max_tokens": 8}
        asked = [({}, None), ({"model": "poet"}, "poet"), ({"adapter": "clerk"}, "clerk"), ({"model": "tiny"}, None)]
        for more, name in asked:
            answer = http.post(TEXT, json=body | more).json()
            assert answer["choices"][0]["text"] == wanted[name]
            assert answer["model"] == (name or "tiny")
        unknown = http.post(TEXT, json=body | {"adapter": "singer"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "adapter")
        assert "there are poet, clerk" in unknown.json()["error"]["message"]
        assert http.post(CHAT, json=ask("hi", model="singer")).status_code == 404
    queue.close(wait=5)


def test_each_adapter_leaves_a_context_of_its_own(tokenizer):
    """Vectors before the text take some of the places that a model has learned."""
    from fastapi.testclient import TestClient

    from onefold.serve.app import create_app

    block = BlockConfig(mixer=AttentionConfig(heads=2), ffn=GatedMLPConfig(width=32))
    embed = EmbedConfig(position=LearnedPositionConfig(context=24))
    network = DecoderConfig(vocab=tokenizer.size, width=16, depth=2, context=24, block=block, embed=embed).build()
    LoRAConfig(rank=4).apply(network, "poet")
    PrefixTuningConfig(length=10).apply(network, "clerk")
    model = Model(Loaded(network.config, network, tokenizer))
    model.use("poet")
    queue = Queue(model, "tiny")
    with TestClient(create_app(queue), base_url="http://127.0.0.1:8000") as http:
        cards = {card["id"]: card["context_length"] for card in http.get("/v1/models").json()["data"]}
        assert cards == {"tiny": 24, "clerk": 14}
        text = "The capital of France is Paris"
        length = len(model.ids(text))
        assert 0 < 14 - length < 24 - length
        for _ in range(2):
            for name, context in (("clerk", 14), ("tiny", 24)):
                asked = {"prompt": text, "model": name, "max_tokens": 100, "temperature": 0}
                answer = http.post(TEXT, json=asked).json()
                assert answer["usage"]["completion_tokens"] == context + 1 - length, answer
        long = {"prompt": text * 2, "max_tokens": 1}
        assert http.post(TEXT, json=long).status_code == 200
        refused = http.post(TEXT, json=long | {"model": "clerk"})
        assert refused.status_code == 400
        assert "at most 14 fit (the model's context)" in refused.json()["error"]["message"]
    queue.close(wait=5)
