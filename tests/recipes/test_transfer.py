"""Recipes on the way to BERT: the papers' settings, and a chain from text over a language model to classes."""

import json

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.models.transformer import count_parameters
from onefold.objectives.transfer import BothDirections, ClassificationAndNext
from onefold.recipes import history
from onefold.recipes.language import elmo, gpt, ulmfit
from onefold.training.optimizers.schedule import Cosine, SlantedTriangular
from onefold.training.run import Run

QUICK = {"trainer.steps": 3, "trainer.batch": 4, "trainer.evaluate_every": 3, "trainer.evaluate_batches": 2}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    return str(folder)


@pytest.mark.parametrize("name", ["elmo", "ulmfit", "gpt", "history"])
def test_a_recipe_round_trips_and_its_miniature_is_small(name):
    for tiny in (False, True):
        run = recipes.resolve(name, tiny=tiny)
        assert Run.from_json(run.to_json()) == run
    assert 0.8e6 < count_parameters(run.model) < 2.5e6


def test_the_settings_of_the_papers():
    run = gpt.recipe()
    assert count_parameters(run.model) == gpt.SIZE
    assert (run.trainer.batch, run.data.context, run.optimizer.lr) == (64, 512, 2.5e-4)
    assert run.trainer.schedule == Cosine(warmup=2000, final=0.0)
    tuned = gpt.recipe(labels="rows.csv", start="runs/gpt")
    assert tuned.objective == ClassificationAndNext(language=0.5)
    assert (tuned.trainer.batch, tuned.optimizer.lr, tuned.trainer.schedule.warmup) == (32, 6.25e-5, 0.002)

    run = ulmfit.recipe(data="mine/", start="runs/ulmfit")
    assert (run.optimizer.lr, run.optimizer.betas, run.trainer.batch) == (0.004, (0.7, 0.99), 64)
    assert run.model is None  # that of the start
    tuned = ulmfit.recipe(labels="rows.csv", start="runs/mine")
    assert tuned.trainer.schedule == SlantedTriangular(cut=0.1, ratio=32)
    assert (tuned.optimizer.lr, tuned.optimizer.layer_decay) == (0.01, 1 / 2.6)
    thaws = [group.frozen_until for group in tuned.optimizer.groups]
    assert [group.pattern for group in tuned.optimizer.groups] == ["blocks.2.*", "blocks.1.*", "blocks.0.*", "*embed*"]
    assert thaws == [250, 500, 750, 1000]

    run = elmo.recipe()
    assert run.objective == BothDirections()
    assert (run.model.width, run.model.hidden, run.model.depth) == (512, 4096, 2)
    assert elmo.recipe(labels="rows.csv", start="runs/elmo").optimizer.lr == 1e-3
    with pytest.raises(UserError, match="start=RUN"):
        gpt.recipe(labels="rows.csv")
    with pytest.raises(UserError, match="elmo, ulmfit, gpt, bert"):
        history.recipe("word2bert")


@pytest.mark.parametrize(
    "name", [pytest.param("elmo", marks=pytest.mark.slow), pytest.param("ulmfit", marks=pytest.mark.slow), "gpt"]
)
def test_text_then_labels(name, notes, tmp_path):
    before = onefold.train(name, tiny=True, data=notes, out=str(tmp_path / "before"), **QUICK)
    assert before.log[-1]["held_out"]["bits_per_byte"] > 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"fox {i} dog", "label": i % 2}) for i in range(40)))
    run = {"labels": str(rows), "start": str(before.out), "out": str(tmp_path / "after")}
    after = onefold.train(name, tiny=True, **run, **QUICK)
    assert "accuracy" in after.log[-1]["held_out"]
    assert (tmp_path / "after" / "report.html").is_file()
    assert onefold.load(after.out).classify(["fox 3 dog", "dog"]).shape == (2, 2)


def test_the_plot_has_a_line_for_each_method():
    rows = [[0.3, 0.4, 0.2], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
    drawing = str(history.plot({**dict.fromkeys(history.NAMES, rows), "from scratch": rows}))
    assert all(name in drawing for name in (*history.NAMES.values(), "from scratch"))
