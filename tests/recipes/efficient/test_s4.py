"""The recipe of S4: its tasks resolve, a small one learns lists and classifies, what A, B and Δ learn at is slower."""

import pytest

import onefold
from onefold.core.errors import UserError
from onefold.recipes.efficient import s4
from onefold.training.run import train


@pytest.mark.parametrize("task", [task for task in s4.TASKS if task != "waves"])
def test_the_table_and_the_recipe_agree(task):
    run, setting = s4.recipe(task), s4.TASKS[task]
    kind = {"copy": "delay"}.get(task, task)
    assert (run.model.width, run.model.depth, run.data.source.kind) == (setting.width, setting.depth, kind)
    assert run.model.block.mixer.causal is not setting.both


def test_what_is_not_at_hand_is_asked_for():
    with pytest.raises(UserError, match="give data=FOLDER"):
        s4.recipe("waves")
    with pytest.raises(UserError, match="makes its own"):
        s4.recipe("listops", "there")
    with pytest.raises(UserError, match="there are listops, pixels"):
        s4.recipe("paths")


def test_a_small_one_trains_slowly_where_it_should_and_classifies(tmp_path):
    run = s4.tiny("delay").but(
        {
            "data.source": {"count": 60, "length": 12},
            "model": {"width": 8, "depth": 1},
            "model.block.mixer.states": 4,
            "trainer": {"steps": 2, "batch": 8, "evaluate_every": 2, "checkpoint_every": 2},
            "data.held_out": 0.2,
            "out": str(tmp_path / "run"),
        }
    )
    model = run.model.build()
    groups = {
        name: group["lr"]
        for group in run.optimizer.build(model).param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is p for p in group["params"])
    }
    assert groups["blocks.0.mixer.kernel.A_imag"] == pytest.approx(0.1 * groups["blocks.0.mixer.kernel.C"])
    assert groups["blocks.0.mixer.kernel.log_dt"] < groups["blocks.0.mixer.kernel.D"]
    train(run)
    model = onefold.load(tmp_path / "run")
    assert model.classify(["s3 " + "n1 " * 11]).shape == (1, 8)
