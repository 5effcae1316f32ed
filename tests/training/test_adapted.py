"""Runs that train adapters beside a model that stays as it is: what they save, resume from, and give back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import onefold
from onefold.adapt.merge import merge
from onefold.adapt.quantize import QuantizeConfig
from onefold.adapt.surgery import matrices
from onefold.core.errors import UserError
from onefold.interop import adapted as adapted_module
from onefold.interop.adapted import Early
from onefold.interop.artifact import FILE, save_artifact
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.nn.quantized import QuantizedLinear
from onefold.training.average import average_checkpoints
from onefold.training.log import read_log
from onefold.training.run import train
from tests.training.conftest import make_corpus, small_run
from tests.training.processes.test_parallel import train_with_two


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
    steps = [{"kind": "lora", "dora": True, "dropout": 0.1}, {"kind": "prompt", "length": 3}]
    settings = {"trainer__schedule": {"kind": "constant"}, "optimizer__ema": 0.9, "adapt": steps}
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


@pytest.fixture(scope="module")
def once(base, tmp_path_factory):
    """A run of every kind of adapter at once, of 4 steps."""
    steps = [{"kind": "lora", "rank": 2, "dora": True}, {"kind": "prefix", "length": 3}]
    changes = {"model": None, "start": str(base.out), "adapt": steps, "trainer.steps": 4, "trainer.checkpoint_every": 2}
    return train(base.run.but(changes | {"out": str(tmp_path_factory.mktemp("once") / "out")}))


def test_a_run_opens_as_what_was_trained(base, once):
    model = onefold.load(once.out)
    assert model.adapters == ["adapter"]
    ids = [[3, 5, 7, 9]]
    adapted = model.logits(ids)
    model.use(None)
    bare = onefold.load(base.out)
    assert torch.equal(model.logits(ids), bare.logits(ids))
    assert not torch.allclose(adapted, bare.logits(ids))
    both = onefold.load(base.out, adapters={"one": once.out, "two": once.checkpoint})
    assert (both.adapters, both.adapter) == (["one", "two"], "one")
    assert torch.equal(both.logits(ids), adapted)
    both.use("two")
    assert torch.equal(both.logits(ids), adapted)


def test_numbers_of_fewer_bits_are_no_other_model(base, once):
    model = onefold.load(base.out, dtype="bfloat16", adapters={"one": once.out})
    plain = onefold.load(base.out, dtype="bfloat16")
    model.use(None)
    assert torch.equal(model.logits([[3, 5, 7]]), plain.logits([[3, 5, 7]]))
    kept, own = load_file(once.checkpoint / "model.safetensors"), own_weights(model.network)
    for name, tensor in kept.items():
        attached = own[name.replace(".adapter.", ".one.")]
        assert torch.equal(attached, tensor.to(attached.dtype))
        assert (attached.dtype == torch.bfloat16) == name.startswith("openings.")  # those are not rounded with weights


@pytest.mark.parametrize("steps", [["lora"], ["quantize", "lora"]])
def test_a_base_of_mixed_dtypes_is_recognised_beside_an_accelerator(base, adapted, tmp_path, steps):
    loaded = open_model(base.out)
    for module in loaded.model.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter)
            parameter.data = parameter.data.half() if parameter.ndim == 2 else parameter.data
    save_artifact(tmp_path / "mixed", loaded.model, loaded.config, loaded.processor)
    result = train(adapted(start=str(tmp_path / "mixed"), adapt=steps, trainer__steps=1))
    opened = open_model(result.out, torch.device("meta"))
    assert own_weights(opened.model)["embed.token.weight"].dtype == torch.float16
    assert own_weights(opened.model)["norm.weight"].dtype == torch.float16
    assert open_model(result.out, torch.device("meta"), "bfloat16").model.embed.token.weight.dtype == torch.bfloat16


def test_another_base_is_named_by_its_first_weight_that_differs(base, once, tmp_path):
    shutil.copytree(base.out, tmp_path / "base")
    shutil.copytree(once.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    artifact = tmp_path / "run" / "checkpoints" / "4" / "artifact.json"
    (artifact.parent / "manifest.json").unlink()
    told = json.loads(artifact.read_text())
    told["base"] |= {"path": "/nowhere/else", "beside": "../../../base"}  # both were moved
    artifact.write_text(json.dumps(told))
    open_model(tmp_path / "run")
    file = tmp_path / "base" / "checkpoints" / "12" / "model.safetensors"
    weights = load_file(file)
    weights["blocks.1.ffn.out.weight"] += 1
    save_file(weights, file)
    (file.parent / "manifest.json").unlink()
    for open_again in (
        lambda: open_model(tmp_path / "run"),
        lambda: open_model(tmp_path / "base", adapters={"a": tmp_path / "run"}),
    ):
        with pytest.raises(UserError, match=r"adapts another model than .*: blocks\.1\.ffn\.out\.weight differs"):
            open_again()
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"adapts /nowhere/else: .*does not exist"):
        open_model(tmp_path / "run")


def test_adapters_of_each_other_are_refused(once, tmp_path):
    for name, other in (("one", "two"), ("two", "one")):
        shutil.copytree(once.checkpoint, tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()
        told = json.loads((tmp_path / name / "artifact.json").read_text())
        told["base"]["path"] = str(tmp_path / other)
        (tmp_path / name / "artifact.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="no model lies at the end") as error:
        open_model(tmp_path / "one")
    assert len(str(error.value)) < 500


def test_adapters_become_the_weights_of_what_begins_with_them(adapted, monkeypatch):
    first = train(adapted("first", trainer__steps=2))
    second = train(adapted("second", start=str(first.out), adapt=["quantize", "lora"], trainer__steps=2))
    third = train(adapted("third", start=str(second.out), trainer__steps=2))
    ids = [[3, 5, 7, 9]]
    model = onefold.load(third.out)
    model.use(None)
    assert (model.logits(ids) - onefold.load(second.out).logits(ids)).abs().max() < 1e-5

    def elsewhere(model):
        """As on a processor that rounds products otherwise."""
        for matrix in matrices(merge(model).blocks):
            matrix.module.weight.data *= 1 + 1e-6
        return model

    recorded, there = json.loads((third.checkpoint / FILE).read_text()), adapted_module.merge
    monkeypatch.setattr(adapted_module, "merge", elsewhere)
    onefold.load(third.out)
    train(third.run.but({"trainer.steps": 3}))
    monkeypatch.setattr(adapted_module, "merge", there)
    weights = own_weights(adapted_module.plain(open_model(second.out)).model)
    prints = {name: adapted_module.fingerprint(weight) for name, weight in weights.items()}
    assert prints.keys() == recorded["base"]["fingerprints"].keys()
    recorded["base"]["fingerprints"] = prints  # as they were recorded once
    (third.checkpoint / FILE).write_text(json.dumps(recorded))
    (third.checkpoint / "manifest.json").unlink()
    open_model(third.checkpoint)
    file = first.checkpoint / "model.safetensors"
    kept = load_file(file)
    kept["blocks.1.ffn.out.adapters.adapter.whole.b"] += 0.1
    save_file(kept, file)
    (file.parent / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"adapts another model than .*: blocks\.1\.ffn\.out\.weight differs"):
        open_model(third.checkpoint)


def test_the_mean_of_checkpoints_adapts_the_same_base(once, adapted, tmp_path):
    mean = average_checkpoints([once.out], last=2, out=tmp_path / "mean")
    files = [
        load_file(folder / "model.safetensors") for folder in (mean, *sorted(once.checkpoint.parent.glob("[0-9]*")))
    ]
    name = "openings.adapters.adapter.pairs"
    torch.testing.assert_close(files[0][name], sum(file[name] for file in files[-2:]) / 2)
    assert onefold.load(mean).adapters == ["adapter"]
    other = train(adapted("other", trainer__steps=1))
    with pytest.raises(UserError, match="do not adapt the same model alike"):
        average_checkpoints([once.checkpoint, other.checkpoint], out=tmp_path / "both")


def test_what_cannot_be_adapted_says_so(base, adapted):
    with pytest.raises(UserError, match="say which one with start="):
        train(adapted("none", start=None, model=base.run.model.to_dict()))
    with pytest.raises(UserError, match=r"'mixer\.query' fits no matrix of the model; did you mean mixer\.q"):
        train(adapted("far", adapt=[{"kind": "lora", "targets": ["mixer.query"]}]))
    with pytest.raises(UserError, match="nothing is left to train"):
        train(adapted("idle", adapt="quantize"))
    with pytest.raises(UserError, match="kind must be one of lora, prompt, prefix, quantize"):
        adapted(adapt="laura")
    assert adapted(adapt="lora").adapt[0].kind == "lora"


BESIDE = {
    "everything": [{"kind": "lora", "rank": 4, "dora": True}, {"kind": "prompt", "length": 3}],
    "fewer bits": ["quantize", {"kind": "lora", "rank": 4}],
}


@pytest.fixture
def without_chance(base, adapted):
    """Adapters in blocks and vectors before the text, without dropout, whose random numbers differ elsewhere."""
    model = base.run.model.but({"block.dropout": 0.0}).to_dict()
    settings = {"trainer__steps": 6, "trainer__evaluate_every": 3, "optimizer__lr": 0.01}
    return lambda name, **changes: adapted(name, model=model, **settings, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BESIDE)
def test_two_processes_are_one(without_chance, kind):
    one, two = (without_chance(name, adapt=BESIDE[kind]) for name in ("one", "two"))
    train(one)
    train_with_two(two)
    for a, b in zip(read_log(one.out / "log.jsonl"), read_log(two.out / "log.jsonl"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
        if "held_out" in a:
            assert a["held_out"]["loss"] == pytest.approx(b["held_out"]["loss"], abs=1e-4)
    kept = [load_file(run.out / "checkpoints" / "6" / "model.safetensors") for run in (one, two)]
    for name, tensor in kept[0].items():
        torch.testing.assert_close(tensor, kept[1][name], atol=2e-3, rtol=0)
