"""The mean of checkpoints: of which, exactly, and where it goes."""

import pytest
import torch
from safetensors.torch import load_file

from onefold.core.errors import UserError
from onefold.infer.model import load
from onefold.training.average import average_checkpoints
from onefold.training.run import train


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_runs_newest_checkpoints(make_run):
    run = make_run({"trainer.steps": 4, "trainer.checkpoint_every": 1, "trainer.keep": 4})
    train(run)
    out = average_checkpoints([run.out], last=3)
    saved = [weights(run.out / "checkpoints" / str(step)) for step in (2, 3, 4)]
    for name, mean in weights(out).items():
        torch.testing.assert_close(mean, sum(each[name] for each in saved) / 3)
    assert out == run.out / "averaged"
    assert [name.rsplit("/", 1)[1] for name in load(out).card["average_of"]] == ["2", "3", "4"]
    assert load(run.out).card["step"] == 4  # what the run itself opens as has not changed


def test_named_folders_are_averaged_as_they_are(make_run, tmp_path):
    run = make_run({"trainer.steps": 2, "trainer.checkpoint_every": 1})
    train(run)
    first, second = (run.out / "checkpoints" / step for step in "12")
    out = average_checkpoints([first, second], out=tmp_path / "mean")
    for name, mean in weights(out).items():
        torch.testing.assert_close(mean, (weights(first)[name] + weights(second)[name]) / 2)
    with pytest.raises(UserError, match="--out"):
        average_checkpoints([first, second])


def test_models_of_different_shapes_are_refused_by_name(make_run, tmp_path):
    one = make_run({"trainer.steps": 1})
    two = make_run({"trainer.steps": 1, "model.depth": 1, "out": tmp_path / "two"})
    train(one)
    train(two)
    with pytest.raises(UserError, match=r"checkpoints/1 is a model of another shape than .*two"):
        average_checkpoints([one.out, two.out], out=tmp_path / "mean")
