"""Recipes of encoders: published settings, miniatures that train, and a chain from pre-training to classes."""

import json

import pytest

import onefold
from onefold import recipes
from onefold.models.transformer import count_parameters
from onefold.recipes import _encoders as encoders
from onefold.recipes import bert, roberta
from onefold.study.check import Report
from onefold.training.run import Run
from onefold.training.schedule import Linear

QUICK = {"trainer.steps": 3, "trainer.batch": 4, "trainer.evaluate_every": 3, "trainer.evaluate_batches": 2}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    return str(folder)


@pytest.mark.parametrize(("name", "published"), [("roberta", roberta.SIZES["base"]), ("bert", bert.SIZES["base"])])
def test_a_recipe_is_the_published_setting_and_round_trips(name, published):
    run = recipes.resolve(name)
    assert count_parameters(run.model) == published
    assert Run.from_json(run.to_json()) == run
    assert 0.8e6 < count_parameters(recipes.resolve(name, tiny=True).model) < 1.5e6


def test_the_settings_of_the_papers():
    run = roberta.recipe()
    assert (run.trainer.steps, run.trainer.batch, run.data.context) == (500_000, 8192, 512)
    assert (run.optimizer.lr, run.optimizer.betas, run.optimizer.eps) == (6e-4, (0.9, 0.98), 1e-6)
    assert run.optimizer.weight_decay == 0.01
    assert run.trainer.schedule == Linear(warmup=24_000)
    assert run.data.masking.masks is None
    run = bert.recipe()
    assert (run.trainer.steps, run.trainer.batch, run.optimizer.lr) == (1_000_000, 256, 1e-4)
    assert run.data.masking.masks == 10
    assert run.data.next_sentence


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_miniature_trains_and_a_classifier_begins_with_it(name, notes, tmp_path):
    before = onefold.train(name, tiny=True, data=notes, out=str(tmp_path / "before"), **QUICK)
    assert before.status == "finished"
    assert (tmp_path / "before" / "report.html").is_file()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"fox {i} dog", "label": i % 2}) for i in range(40)))
    run = {"data": str(rows), "start": str(before.out), "out": str(tmp_path / "after")}
    after = onefold.train("text_classifier", tiny=True, **run, **QUICK)
    assert "accuracy" in after.log[-1]["held_out"]
    model = json.loads((after.checkpoint / "artifact.json").read_text())["model"]
    assert (model["classes"], model["masked"]) == (2, None)
    model = onefold.load(after.out)
    assert model.classes == ("0", "1")
    assert model.classify(["fox 3 dog"]).shape == (1, 2)


def test_a_classifier_from_scratch(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"fox {i} dog,{i % 3}\n" for i in range(40)))
    result = onefold.train("text_classifier", tiny=True, data=str(rows), out=str(tmp_path / "run"), **QUICK)
    assert "accuracy" in result.log[-1]["held_out"]
    assert Run.from_json(result.run.to_json()) == result.run


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [bert, roberta])
def test_a_check_says_what_it_should(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "SEEDS", (0,))
    monkeypatch.setattr(encoders, "LABELS", (2, 4))
    monkeypatch.setattr(encoders, "STEPS", 2)
    monkeypatch.setattr(encoders, "TUNING", 2)
    encoders.pretrained.cache_clear()
    report = Report("check")
    recipe.check(report)
    assert {row.kind for row in report.rows} >= {"equal", "less", "note"}
