"""Runs that train adapters beside a model that stays as it is: what they save, resume from, and give back."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onefold.adapt.quantize import QuantizeConfig
from onefold.core.errors import UserError
from onefold.interop.adapted import Early
from onefold.interop.artifact import save_artifact
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.nn.quantized import QuantizedLinear
from onefold.training.run import train
from tests.training.conftest import make_corpus, small_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of 12 steps, the model that is adapted."""
    folder = tmp_path_factory.mktemp("base")
    return train(small_run(make_corpus(folder / "text"), folder / "out"))


@pytest.fixture
def adapted(base, tmp_path):
    """The run of `base`'s data with adapters, and changes to it."""

    def run(name="out", **changes):
        start = {"model": None, "start": str(base.out), "adapt": [{"kind": "lora", "rank": 4}]}
        return base.run.but(
            start | {"out": str(tmp_path / name)} | {n.replace("__", "."): v for n, v in changes.items()}
        )

    return run


def test_only_adapters_move_and_only_they_are_saved(base, adapted):
    result = train(adapted())
    before, after = open_model(base.out), open_model(result.out)
    own, kept = own_weights(after.model), load_file(result.checkpoint / "model.safetensors")
    assert len(kept) == 28  # A and B of q, k, v, out, gate, up and out in two layers
    assert all(".adapters.adapter." in name for name in kept)
    for name, weight in own_weights(before.model).items():
        assert torch.equal(own.get(name, own.get(name.replace(".weight", ".base.weight"))), weight)
    moved = [name for name in kept if name.endswith(".b") and kept[name].any()]
    assert len(moved) == len([name for name in kept if name.endswith(".b")])
    assert result.log[-1]["loss"] < result.log[0]["loss"]


def test_resuming_gives_the_same_bits(adapted):
    settings = {"trainer__schedule": {"kind": "constant"}, "optimizer__ema": 0.9}
    whole = train(adapted("whole", trainer__steps=6, **settings))
    train(adapted("parts", trainer__steps=3, **settings))
    parts = train(adapted("parts", trainer__steps=6, **settings))
    for file in ("model.safetensors", "state/optimizer.safetensors", "state/weights.safetensors"):
        assert (parts.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


def test_a_base_of_fewer_bits_is_quantised_while_it_is_read_and_when_the_run_is_opened(base, adapted, monkeypatch):
    step = QuantizeConfig(block=32)
    early, plain = Early((step,)), open_model(base.out).model
    model = open_model(base.out, arrived=early).model
    step.apply(plain)
    for name, module in plain.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(model.get_submodule(name).dense(), module.dense())
    assert len(early.fingerprints) == 8
    steps = [step.to_dict(), {"kind": "lora", "rank": 4}]
    whole = train(adapted("whole", adapt=steps, trainer__steps=6, trainer__schedule={"kind": "constant"}))
    train(adapted("parts", adapt=steps, trainer__steps=3, trainer__schedule={"kind": "constant"}))
    parts = train(adapted("parts", adapt=steps, trainer__steps=6, trainer__schedule={"kind": "constant"}))
    assert (parts.checkpoint / "model.safetensors").read_bytes() == (
        whole.checkpoint / "model.safetensors"
    ).read_bytes()
    opened = open_model(whole.out)
    monkeypatch.setattr(Early, "__call__", lambda *_: None)  # as where a model cannot be quantised so early
    late, tokens = open_model(whole.out), torch.arange(20)[None]
    assert torch.equal(opened.model(tokens), late.model(tokens))
    assert torch.equal(opened.model.get_submodule("blocks.0.ffn.out").base.codes, plain.blocks[0].ffn.out.codes)


def test_another_base_of_fewer_bits_is_refused(base, adapted, tmp_path):
    result = train(adapted(adapt=["quantize", "lora"], trainer__steps=1))
    loaded = open_model(base.out)
    with torch.no_grad():
        loaded.model.blocks[1].ffn.out.weight[0, 0] += 1
    save_artifact(tmp_path / "other", loaded.model, loaded.config, loaded.processor)
    file = result.checkpoint / "artifact.json"
    content = json.loads(file.read_text())
    content["base"]["path"] = str(tmp_path / "other")
    file.write_text(json.dumps(content))
    (result.checkpoint / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"blocks\.1\.ffn\.out\.weight differs"):
        open_model(result.checkpoint)
