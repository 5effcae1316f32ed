"""DeepSpeed-MoE's kinds are what the paper says of them, and a student learns from a teacher that is there."""

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError


def experts(run) -> list[int]:
    return [getattr(block.ffn, "experts", 1) for block in run.model.blocks()]


def test_experts_are_in_every_other_layer_and_most_of_them_in_the_last():
    pyramid = recipes.resolve("deepspeed_moe", {"kind": "pyramid"})
    assert experts(pyramid) == [1, 32] * 10 + [1, 64] * 2
    student = recipes.resolve("deepspeed_moe", {"teacher": "runs/large"})
    assert experts(student) == [1, 32] * 8 + [1, 64] * 2 + [1]
    assert all(block.ffn.mixed for block in student.model.blocks()[1::2])
    assert student.objective.until == round(0.7 * student.trainer.steps)
    with pytest.raises(UserError, match="leaves no second stage"):
        student.but({"trainer.steps": student.objective.until})
    assert recipes.resolve("deepspeed_moe", {"kind": "residual", "size": "1.3b"}).model.blocks()[1].ffn.experts == 128


def test_unknown_kinds_and_sizes_are_told():
    for wrong in ({"kind": "prmoe"}, {"size": "175b"}):
        with pytest.raises(UserError, match="take one of"):
            recipes.resolve("deepspeed_moe", wrong)


def test_a_student_learns_from_its_teacher_for_a_while(tmp_path):
    (tmp_path / "text").mkdir()
    for n in range(12):
        (tmp_path / "text" / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    short = {"trainer.batch": 2, "trainer.steps": 2, "data": str(tmp_path / "text"), "tiny": True}
    teacher = onefold.train("deepspeed_moe", out=str(tmp_path / "teacher"), **short)
    more = {"teacher": str(teacher.out), "objective.until": 1}
    log = onefold.train("deepspeed_moe", out=str(tmp_path / "student"), **short, **more).log
    assert ["kl" in record for record in log] == [True, False]
    assert log[-1]["held_out"]["ce"] == pytest.approx(log[-1]["held_out"]["loss"])
