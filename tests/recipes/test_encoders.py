"""Recipes of encoders: published settings, miniatures that train, and a chain from pre-training to classes."""

import json

import pytest
import torch

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.infer.evaluation.judge import judge_rows
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.encoders import bert, roberta
from onefold.study.check import Report
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run

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


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), "roberta"])
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


ROWS = {
    "sequence": [{"text": f"fox {i} dog", "label": "ab"[i % 2]} for i in range(20)],
    "token": [{"tokens": ["fox", str(i)], "tags": ["B-ANIMAL", "O"]} for i in range(20)],
    "span": [{"question": "which fox?", "context": f"it was fox {i}", "answer": f"fox {i}"} for i in range(20)],
    "regression": [{"text": f"fox {i} dog", "label": 1000 + i} for i in range(20)],
}


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory):
    """A run that was trained without labels for three steps."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "a.txt").write_text("the quick brown fox jumps over the lazy dog. which was it?\n" * 40)
    (folder / "b.txt").write_text("1000 foxes, 10 dogs; 12 34 56 78 90.\n" * 40)
    run = {"data": str(folder), "out": str(folder / "run"), "model.block.ffn.width": 64, "data.held_out": 0.5}
    return onefold.train("roberta", tiny=True, **run, **QUICK).out


@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_learned_and_judged(task, small_encoder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS[task])))
    given = {"task": task, "data": str(rows), "start": str(small_encoder), "out": str(tmp_path / "run")}
    result = onefold.train("roberta", tiny=True, **given, **QUICK)
    assert result.run.objective == encoders.OBJECTIVES[task]
    assert Run.from_json(result.run.to_json()) == result.run
    assert result.log[-1]["held_out"]["loss"] > 0
    model = onefold.load(result.out)
    judged = judge_rows(model, str(rows))
    assert len(judged.said) == len(list(result.dataset.examples("held_out"))) < len(ROWS[task])  # not what it learned
    figures = {figure.name for figure in judged.figures}
    told = {"sequence": "macro F1", "token": "entity F1", "span": "exact match", "regression": "Spearman"}
    assert told[task] in figures
    assert told[task] in capsys.readouterr().out
    if task == "regression":
        said = model.predict(["fox 3 dog", "fox 19 dog"])
        assert ((said > 900) & (said < 1200)).all()  # in the units of the rows…
        model.save(tmp_path / "published", "hf")  # …also for those who know nothing of ours
        torch.testing.assert_close(onefold.load(tmp_path / "published").predict(["fox 3 dog", "fox 19 dog"]), said)


def test_what_fine_tuning_needs_is_told(small_encoder):
    with pytest.raises(UserError, match="task=token fine-tunes a model: give start=FOLDER"):
        recipes.resolve("roberta", {"task": "token", "data": "rows.jsonl"})
    with pytest.raises(UserError, match="no task named tokens; did you mean token"):
        recipes.resolve("bert", {"task": "tokens", "start": "x"})
    with pytest.raises(UserError, match="task=span needs data=FILE with questions, contexts and answers"):
        recipes.resolve("text_classifier", {"task": "span"})


def test_the_settings_of_fine_tuning():
    run = recipes.resolve("roberta", {"task": "span", "data": "train.json", "start": "x"})
    assert (run.optimizer.lr, run.optimizer.weight_decay, run.trainer.batch) == (1.5e-5, 0.01, 48)
    assert (run.data.context, run.data.overlap, run.data.task) == (384, 128, "span")
    run = recipes.resolve("bert", {"task": "sequence", "start": "x"})
    assert (run.optimizer.lr, run.trainer.batch, run.trainer.schedule.warmup) == (3e-5, 32, 0.1)


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
