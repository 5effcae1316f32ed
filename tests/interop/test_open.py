"""Deciding what a path is."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.artifact import save_artifact, write_artifact
from onefold.interop.gguf import save_gguf
from onefold.interop.huggingface import save_folder
from onefold.interop.loaded import Loaded
from onefold.interop.open import open_model, shipped
from onefold.interop.table import own_weights
from onefold.models.families import llama2


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = Tokenizer.train(["deciding what a path is"] * 3, 280)
    config = llama2().but(
        {"vocab": 280, "width": 16, "depth": 1, "block.mixer": {"heads": 2}, "block.ffn.width": 24, "context": 32}
    )
    torch.manual_seed(0)
    return Loaded(config, config.build().eval(), tokenizer)


def same(a: Loaded, b: Loaded) -> bool:
    return all(torch.equal(tensor, own_weights(b.model)[name]) for name, tensor in own_weights(a.model).items())


def test_every_kind_of_path_is_opened(loaded, tmp_path):
    save_artifact(tmp_path / "ours", loaded.model, loaded.config, loaded.tokenizer)
    save_folder(tmp_path / "hf", loaded)
    save_gguf(tmp_path / "gguf/m.gguf", loaded, "F32")
    shutil.copy(tmp_path / "gguf/m.gguf", tmp_path / "nameless")
    paths = ["ours", "hf", "gguf", "gguf/m.gguf", "nameless", "ours/model.safetensors", "hf/config.json"]
    for path in paths:
        opened = open_model(tmp_path / path, "cpu", torch.float32)
        assert same(opened, loaded), path
        assert opened.tokenizer.encode("a path") == loaded.tokenizer.encode("a path"), path
    assert same(open_model(str(tmp_path / "hf")), loaded)
    shutil.copy(tmp_path / "gguf/m.gguf", tmp_path / "gguf/n.gguf")
    with pytest.raises(UserError, match="holds 2 GGUF files; name one"):
        open_model(tmp_path / "gguf")


def test_home_and_devices(loaded, tmp_path, monkeypatch):
    save_artifact(tmp_path / "ours", loaded.model, loaded.config, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(open_model("~/ours", "auto"), loaded)
    with pytest.raises(UserError, match="device 'abacus' is not available"):
        open_model("~/ours", "abacus")


def checkpoint(run: Path, step: int, loaded: Loaded) -> Path:
    """As the trainer writes them: an artifact and a state beside it, under one manifest."""
    path = run / "checkpoints" / str(step)
    with atomic_folder(path) as folder:
        weights = {name: tensor + step for name, tensor in own_weights(loaded.model).items()}
        write_artifact(folder, loaded.config, weights, loaded.tokenizer, {"step": step})
        (folder / "state").mkdir()
        (folder / "state/state.json").write_text("{}")
    return path


def test_a_run_gives_its_best_checkpoint_or_else_the_newest(loaded, tmp_path):
    run = tmp_path / "run"
    for step in (2, 10, 9):
        checkpoint(run, step, loaded)
    (run / "config.json").write_text(json.dumps({"data": {}, "model": {}}))
    (run / "checkpoints/.11.writing-xyz").mkdir()
    assert open_model(run).card == {"step": 10}
    (run / "checkpoints/best.json").write_text(json.dumps({"step": 2, "value": 1.5}))
    assert open_model(run).card == {"step": 2}
    assert open_model(run / "checkpoints/9").card == {"step": 9}
    assert open_model(run / "checkpoints").card == {"step": 2}
    for content in ('{"step": 77}', "{", "[]"):
        (run / "checkpoints/best.json").write_text(content)
        assert open_model(run).card == {"step": 10}


def test_a_damaged_checkpoint_falls_back_to_the_last_good_one_and_says_so(loaded, tmp_path, capsys):
    run = tmp_path / "run"
    for step in (1, 2, 3):
        checkpoint(run, step, loaded)
    weights = run / "checkpoints/3/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    weights = run / "checkpoints/2/model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-9] ^= 16
    weights.write_bytes(damaged)
    assert open_model(run).card == {"step": 1}
    said = capsys.readouterr().err
    assert "3/model.safetensors" in said
    assert f"Going back to {run / 'checkpoints/1'}" in said
    shutil.rmtree(run / "checkpoints/1")
    with pytest.raises(UserError, match=r"3/model\.safetensors"):
        open_model(run)


def test_of_several_stages_the_last_one(loaded, tmp_path):
    out = tmp_path / "quickstart"
    out.mkdir()
    with pytest.raises(UserError, match="holds no model"):
        open_model(out)
    first = checkpoint(out / "pretrain", 5, loaded).parent
    second = checkpoint(out / "chat", 7, loaded).parent
    (out / "chat/checkpoints").mkdir(exist_ok=True)
    (out / "empty/checkpoints").mkdir(parents=True)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert open_model(out).card == {"step": 7}
    os.utime(first, (3, 3))
    assert open_model(out).card == {"step": 5}
    (out / "pretrain/config.json").write_text(json.dumps({"start": None}))
    (out / "chat/config.json").write_text(json.dumps({"start": str(out / "pretrain")}))
    assert open_model(out).card == {"step": 7}  # it began with the other, which was trained on since
    with pytest.raises(UserError, match="has not saved anything yet"):
        open_model(out / "empty")


def test_what_is_no_model_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text('{"data": 3}')
    (tmp_path / "short.gguf").write_bytes(b"GG")
    cases = {
        tmp_path / "none": "does not exist: give a run",
        "folder/none": "does not exist: give a run",  # relative: no hub id, since the folder is here
        tmp_path / "notes.txt": "is no model: give a .gguf file",
        tmp_path / "folder": "holds no model: looked for",
        tmp_path / "short.gguf": "not a GGUF file|cut off",
        tmp_path / "folder/config.json": "holds no model",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            open_model(path)
        assert "\n" not in str(raised.value)
    (tmp_path / "folder/config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        open_model(tmp_path / "folder")


def test_hub_ids_without_the_package_or_the_network(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^org/name is no path here, and the hub cannot be reached to fetch it$"):
        open_model("org/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^org/name is not here; .* needs the package huggingface_hub: pip install"):
        open_model("org/name")


def test_a_hub_model_comes_from_the_cache(loaded, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--org--name"
    save_folder(place / "snapshots/abc", loaded)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    assert same(open_model("org/name"), loaded)


def test_a_package_that_ships_a_model_is_opened_by_its_name_and_not_run(tmp_path, monkeypatch):
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    assert shipped("some-model") is None
    (package / "weights.gguf").write_bytes(b"GGUF")
    assert shipped("some-model") == package / "weights.gguf"
    (package / "others.gguf").write_bytes(b"GGUF")
    assert shipped("some-model") is None  # which of them?
    for name in ("some_model.inner", "../some_model"):
        assert shipped(name) is None
