"""Models of pictures go the way of every run: stopped and resumed to the same bits, on several processes, reviewed."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from onefold.core.errors import UserError
from onefold.data.pictures.files import encode
from onefold.data.pictures.sources import open_pictures
from onefold.data.pictures.store import append, build
from onefold.infer.classify import predict
from onefold.infer.model import load
from onefold.models.vision import sizes as vision_sizes
from onefold.recipes import resolve
from onefold.training.run import train

from .processes.test_parallel import log, train_with_two

SMALL = {
    "resnet": vision_sizes.resnet().but({"blocks": (1, 1), "widths": (8, 16), "stem": 8}),
    "convnext": vision_sizes.convnext().but({"image": 64, "blocks": (1, 1), "widths": (16, 32), "patch": 2}),
}
STEPS = {"trainer.steps": 6, "trainer.batch": 16, "trainer.schedule": "constant", "trainer.evaluate_every": 3}


def run_of(kind, out):
    model = SMALL[kind].but({"channels": 1, "classes": 10, "image": 16})
    changes = {"model": model.to_dict(), "data.side": 16, "optimizer.ema": 0.9, "out": str(out), **STEPS}
    return resolve("vit", tiny=True).but(changes)


@pytest.mark.parametrize("kind", SMALL)
def test_a_resumed_run_has_the_weights_and_running_averages_of_one_that_never_stopped(kind, tmp_path):
    whole = train(run_of(kind, tmp_path / "whole"))
    train(run_of(kind, tmp_path / "parts").but({"trainer.steps": 3}))
    parts = train(run_of(kind, tmp_path / "parts"))
    for name in ("model.safetensors", "state/weights.safetensors", "state/optimizer.safetensors"):
        a, b = (load_file(result.checkpoint / name) for result in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    if kind == "resnet":
        running = load_file(whole.checkpoint / "model.safetensors")["stem.norm.mean"]
        assert running.abs().max() > 0


def test_a_run_goes_on_to_the_same_bits_though_its_store_was_added_to(tmp_path, capsys):
    digits = list(open_pictures("digits"))[:120]
    for part in (slice(0, 80), slice(80, 120)):
        for number, picture in enumerate(digits[part]):
            file = tmp_path / f"{part.start}" / str(picture.label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(picture.pixels))
    build(tmp_path / "0", tmp_path / "store")
    whole, parts = (
        run_of("resnet", tmp_path / name).but({"data.path": str(tmp_path / "store")}) for name in ("whole", "parts")
    )
    whole = train(whole)
    train(parts.but({"trainer.steps": 3}))
    append(tmp_path / "80", tmp_path / "store")
    capsys.readouterr()
    again = train(parts)
    assert "store has been added to since: going on with the 72 pictures of then" in capsys.readouterr().err
    weights = [load_file(result.checkpoint / "model.safetensors") for result in (whole, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [record["loss"] for record in again.log] == [record["loss"] for record in whole.log]
    shutil.rmtree(tmp_path / "store")
    build(tmp_path / "80", tmp_path / "store")
    with pytest.raises(UserError, match="the data have changed"):
        train(parts.but({"trainer.steps": 9}))


def test_classes_and_sides_follow_the_data_and_are_said(tmp_path, capsys):
    run = resolve("vit", tiny=True).but({"model.classes": 7, "out": str(tmp_path), **STEPS, "trainer.steps": 2})
    result = train(run)
    assert "model.classes=10 instead of 7" in capsys.readouterr().err
    assert json.loads((result.checkpoint / "artifact.json").read_text())["model"]["classes"] == 10


def test_a_classifier_begins_with_the_encoder_of_a_masked_autoencoder(tmp_path):
    two = {"trainer.steps": 2, "trainer.batch": 16}
    before = train(resolve("mae", tiny=True).but({**two, "out": str(tmp_path / "mae")}))
    run = resolve("classifier", {"start": str(before.out)}, tiny=True)
    after = train(run.but({**two, "out": str(tmp_path / "tuned"), "optimizer.lr": 1e-12, "optimizer.ema": None}))
    encoder, tuned = (load_file(r.checkpoint / "model.safetensors") for r in (before, after))
    torch.testing.assert_close(tuned["blocks.0.ffn.up.weight"], encoder["encoder.blocks.0.ffn.up.weight"])


def test_a_model_of_text_cannot_begin_one_of_pictures(make_run, tmp_path):
    text = train(make_run({"trainer.steps": 1}))
    run = resolve("classifier", {"start": str(text.out)}, tiny=True).but({"out": str(tmp_path / "pictures")})
    with pytest.raises(UserError, match="is a model of text, the data are not"):
        train(run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_two_processes_evaluate_and_save_one_model(kind, tmp_path):
    """What each finds on its share of the held-out pictures is what the saved model finds on all of them."""
    changes = {"trainer.micro_batch": 8, "optimizer.lr": 0.01}
    one, two = (run_of(kind, tmp_path / name).but(changes) for name in ("one", "two"))
    train(one)
    said = train_with_two(two)
    assert "Warning" not in said
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)  # the same micro-batches, normalised by themselves
    for ended in (one, two):
        held_out = ended.data.prepare(ended.out / "data").evaluation("held_out", 64)
        found = predict(load(ended.out / "checkpoints" / "6").network, held_out)
        assert float(found.losses.double().mean()) == pytest.approx(log(ended)[-1]["held_out"]["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vit", "nfnet", "classifier"])
def test_two_processes_train_and_one_writes_the_report(recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "onefold", "train", recipe]
    settings = ["--tiny", "trainer.steps=3", "trainer.batch=16", f"out={tmp_path}"]
    subprocess.run([*command, *settings], check=True, timeout=200)
    assert "images per second" in (tmp_path / "report.html").read_text()
