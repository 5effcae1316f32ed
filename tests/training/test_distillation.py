"""A student that learns from a teacher's logits comes near it."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.model import load
from onefold.interop.artifact import save_artifact
from onefold.training.run import train
from tests.training.conftest import make_corpus, small_run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run, and the text that it learned from."""
    base = tmp_path_factory.mktemp("teacher")
    corpus = make_corpus(base / "text")
    run = small_run(corpus, base / "out").but({"trainer.steps": 60, "model.width": 32, "model.block.dropout": 0.0})
    return corpus, train(run).out


@pytest.mark.parametrize("divergence", ["forward", pytest.param("reverse", marks=pytest.mark.slow)])
def test_a_student_approaches_its_teacher(teacher, tmp_path, divergence):
    corpus, path = teacher
    objective = {"kind": "distillation", "divergence": divergence, "hard": 0.1}
    student = small_run(corpus, tmp_path / "out").but(
        {
            "objective": objective,
            "frozen": {"teacher": str(path)},
            "model.block.dropout": 0.0,
            "trainer": {"steps": 40, "evaluate_every": 10},
        }
    )
    result = train(student)
    apart = [record["held_out"]["kl"] for record in result.log if "held_out" in record]
    assert apart[-1] < 0.6 * apart[0]
    assert apart == sorted(apart, reverse=True)
    assert "bits_per_byte" in result.log[-1]["held_out"]


def test_teachers_that_read_something_else_are_refused(teacher, tmp_path):
    corpus, path = teacher
    run = small_run(corpus, tmp_path / "out").but({"objective": {"kind": "distillation"}})
    with pytest.raises(UserError, match=r"frozen\.teacher=PATH"):
        train(run)
    consulting = run.but({"frozen": {"teacher": str(path)}})
    with pytest.raises(UserError, match=r"frozen\.teacher=\S+ has another tokenizer"):
        train(consulting.but({"data.tokenizer.vocab": 285}))
    with pytest.raises(UserError, match=r"cannot read these data: data\.context=48 is longer"):
        train(consulting.but({"data.context": 48, "model.context": 48}))


def test_another_teacher_is_no_continuation(teacher, tmp_path):
    corpus, path = teacher
    model, place = load(path), tmp_path / "teacher"
    save_artifact(place, model.network, model.config, model.tokenizer)
    run = small_run(corpus, tmp_path / "out").but({"objective": {"kind": "distillation"}, "trainer.steps": 1})
    run = run.but({"frozen": {"teacher": str(place)}})
    train(run)
    assert train(run.but({"trainer.steps": 2})).step == 2
    torch.nn.init.ones_(next(model.network.parameters()))
    save_artifact(place, model.network, model.config, model.tokenizer)
    with pytest.raises(UserError, match=r"frozen\.teacher=\S+ has changed since"):
        train(run.but({"trainer.steps": 3}))
