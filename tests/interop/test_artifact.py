"""Our own folder: what was saved is what is loaded, and damage is named."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.artifact import load_artifact, save_artifact
from onefold.interop.table import own_weights
from onefold.interop.tokenizers.tokens import with_stops
from onefold.models.families import gpt2, llama2
from onefold.models.transformer import DecoderConfig

TINY = {"vocab": 300, "width": 24, "depth": 2, "block.mixer": {"heads": 3, "kv_heads": 1}, "block.ffn.width": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return with_stops(Tokenizer.train(["what was saved is what is loaded"] * 5, 280), [7])


@pytest.fixture
def config() -> DecoderConfig:
    return llama2().but({**TINY, "tied": True, "context": 64}).but({"pattern": [{}, {"mixer.window": 3}]})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saved_and_loaded_a_model_is_the_same(family, config, tokenizer, tmp_path):
    if family == "gpt2":
        config = gpt2().but({"vocab": 300, "width": 24, "depth": 2, "block.mixer.heads": 3, "block.ffn.width": 32})
    torch.manual_seed(0)
    model = config.build()
    save_artifact(tmp_path / "a", model, config, tokenizer, {"step": 3, "loss": {"value": 1.5}})
    loaded = load_artifact(tmp_path / "a")
    assert loaded.config == config
    assert loaded.card == {"step": 3, "loss": {"value": 1.5}}
    ours, theirs = own_weights(model), own_weights(loaded.model)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.model.unembed.weight is loaded.model.embed.token.weight) == config.tied
    assert loaded.tokenizer.digest == tokenizer.digest
    assert loaded.tokenizer.stops == tokenizer.stops
    tokens = torch.randint(0, 300, (2, 9))
    assert torch.equal(loaded.model(tokens), model.eval()(tokens))
    loaded.model(tokens).sum().backward()  # it can be trained on
    assert loaded.model.embed.token.weight.grad is not None


def test_types_and_a_missing_tokenizer(config, tmp_path):
    model = config.build()
    save_artifact(tmp_path / "a", model, config, None, dtype="bfloat16")
    assert load_artifact(tmp_path / "a").tokenizer is None
    assert load_artifact(tmp_path / "a").model.norm.weight.dtype == torch.float32
    assert load_artifact(tmp_path / "a", dtype="auto").model.norm.weight.dtype == torch.bfloat16
    assert load_artifact(tmp_path / "a", dtype=torch.float64).model.norm.weight.dtype == torch.float64


def test_state_spaces_are_not_rounded(config, tmp_path):
    model = config.but({"pattern": [], "block.mixer": {"kind": "s4d", "states": 8}}).build()
    save_artifact(tmp_path / "a", model, model.config, None, dtype="bfloat16")
    loaded = load_artifact(tmp_path / "a", dtype="bfloat16").model
    assert loaded.blocks[0].mixer.out.weight.dtype == torch.bfloat16
    for made in (loaded, copy.deepcopy(model).bfloat16()):
        for name, parameter in made.blocks[0].mixer.kernel.named_parameters():
            assert torch.equal(parameter, model.blocks[0].mixer.kernel.get_parameter(name)), name


def test_every_damaged_file_is_named(config, tokenizer, tmp_path):
    save_artifact(tmp_path / "a", config.build(), config, tokenizer)
    weights = tmp_path / "a/model.safetensors"
    good = weights.read_bytes()
    for at in (0, 9, 200, len(good) // 2, len(good) - 1):
        damaged = bytearray(good)
        damaged[at] ^= 4
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_artifact(tmp_path / "a")
    for size in (0, 50, len(good) - 1):
        weights.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_artifact(tmp_path / "a")
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_artifact(tmp_path / "a")
    weights.write_bytes(good)
    load_artifact(tmp_path / "a")
    for file in ("artifact.json", "tokenizer.json"):
        content = (tmp_path / "a" / file).read_text()
        (tmp_path / "a" / file).write_text(content[: len(content) // 2])
        with pytest.raises(UserError, match=file):
            load_artifact(tmp_path / "a")
        with (tmp_path / "a" / file).open("r+") as opened:
            opened.write(content.replace("0", "1"))  # still JSON
        with pytest.raises(UserError, match=rf"{file} is damaged: its checksum"):
            load_artifact(tmp_path / "a")
        (tmp_path / "a" / file).write_text(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2; this onefold reads up to 1"),
        ({"version": 0}, "unknown version 0"),
        ({"format": "other"}, "not an artifact"),
        ({"model": {"kind": "unet"}}, "'unet' is not known here; known: decoder"),
        ({"model": None}, "is not known here"),
        ({"model.widht": 24}, "did you mean width"),
        ({"model.depth": 3}, "weights are of another model"),
        ({"model.width": 27}, r"embed.token.weight is \[300, 24\]"),
        ({"model.vocab": 301}, "the weights have a vocabulary of 300, the configuration one of 301"),
        ({"model.vocab": 200}, "do not belong together"),
        ({"model.block.mixer": {"kind": "os:system"}}, "is code"),
    ],
)
def test_what_artifact_json_says_is_checked(change, message, config, tokenizer, tmp_path):
    save_artifact(tmp_path / "a", config.build(), config, tokenizer)
    path = tmp_path / "a/artifact.json"
    (tmp_path / "a/manifest.json").unlink()  # else any change is damage
    content = json.loads(path.read_text())
    for where, value in change.items():
        *parents, last = where.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_artifact(tmp_path / "a")


def test_a_failed_save_leaves_the_old_artifact(config, tokenizer, tmp_path, monkeypatch):
    model = config.build()
    save_artifact(tmp_path / "a", model, config, tokenizer)

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("onefold.interop.tensors.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_artifact(tmp_path / "a", config.build(), config, tokenizer)
    loaded = own_weights(load_artifact(tmp_path / "a").model)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in own_weights(model).items())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_loading_does_not_import_transformers_or_gguf(config, tokenizer, tmp_path):
    save_artifact(tmp_path / "a", config.build(), config, tokenizer)
    program = (
        f"import sys; from onefold.interop.open import open_model; open_model({str(tmp_path / 'a')!r}); "
        "assert not {'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
