"""Recipes of encoder-decoders that restore text: published settings, miniatures that train, checks that run."""

import json

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.seq2seq import _seq2seq as seq2seq
from onefold.recipes.seq2seq import bart, t5
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdafactorConfig
from onefold.training.run import Run

QUICK = {"trainer.steps": 3, "trainer.batch": 4, "trainer.evaluate_every": 3, "trainer.evaluate_batches": 2}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    return str(folder)


@pytest.mark.parametrize(("name", "published"), [("t5", t5.SIZES["base"]), ("bart", bart.SIZES["large"])])
def test_a_recipe_is_the_published_setting_and_round_trips(name, published):
    run = recipes.resolve(name)
    assert count_parameters(run.model) == published
    assert Run.from_json(run.to_json()) == run
    assert 0.8e6 < count_parameters(recipes.resolve(name, tiny=True).model) < 1.5e6


def test_the_settings_of_the_papers():
    run = t5.recipe()
    assert (run.trainer.steps, run.trainer.batch, run.data.context) == (524_288, 128, 512)
    assert run.optimizer == AdafactorConfig(lr=0.01)
    rates = [run.optimizer.lr * run.trainer.schedule.multiplier(step - 1, 0) for step in (1, 10_000, 40_000)]
    assert rates == pytest.approx([max(step, 10_000) ** -0.5 for step in (1, 10_000, 40_000)])  # section 3.1.2
    assert (run.data.noise.rate, run.data.noise.mean, run.data.tokenizer.sentinels) == (0.15, 3.0, 100)
    assert count_parameters(t5.recipe(gated=True, size="small").model) == t5.GATED_SIZES["small"]
    run = bart.recipe()
    assert (run.trainer.steps, run.trainer.batch, run.data.context) == (500_000, 8000, 512)
    assert (run.data.noise.rate, run.data.noise.mean, run.data.noise.sentences) == (0.3, 3.0, True)


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_miniature_trains_resumes_and_writes(name, notes, tmp_path):
    given = {"tiny": True, "data": notes, "out": str(tmp_path / "run")}
    before = onefold.train(name, **given, **QUICK)
    after = onefold.train(name, **given, **QUICK | {"trainer.steps": 5})
    assert (before.step, after.step) == (3, 5)
    assert (tmp_path / "run" / "report.html").is_file()
    model = onefold.load(after.out)
    assert isinstance(model.generate("the quick fox", max_new_tokens=4), str)
    if name == "t5":
        assert model.config.start == model.tokenizer.pad


def test_tasks_of_ones_own_are_learned_beside_the_gaps(notes, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input": f"fox {i}", "target": f"dog {i}"}) + "\n" for i in range(60)))
    given = {"tiny": True, "data": notes, "tasks": f"swap={rows}"}
    assert Run.from_json(recipes.resolve("t5", {k: v for k, v in given.items() if k != "tiny"}, tiny=True).to_json())
    result = onefold.train("t5", **given, out=str(tmp_path / "run"), **QUICK)
    assert result.status == "finished"
    assert len(result.dataset.parts) == 2
    with pytest.raises(UserError, match="a task is NAME=TABLE"):
        t5.recipe(tasks="rows.jsonl")


@pytest.mark.slow
def test_t5s_own_optimizer_resumes_to_the_same_bits(notes, tmp_path):
    run = t5.tiny(notes).but(QUICK | {"optimizer": AdafactorConfig().to_dict(), "trainer.steps": 4})
    run = run.but({"trainer.checkpoint_every": 2, "trainer.schedule": {"kind": "constant", "warmup": 0}})
    whole = onefold.train(run.but({"out": str(tmp_path / "whole")}))
    onefold.train(run.but({"out": str(tmp_path / "parts"), "trainer.steps": 2}))
    parts = onefold.train(run.but({"out": str(tmp_path / "parts")}))
    assert [r["loss"] for r in parts.log] == [r["loss"] for r in whole.log]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [t5, bart])
def test_a_check_says_what_it_should(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "SEEDS", (0,))
    monkeypatch.setattr(recipe, "STEPS", 2)
    monkeypatch.setattr(seq2seq, "PAIRS", 50)
    report = Report("check")
    recipe.check(report)
    assert {row.kind for row in report.rows} >= {"equal", "less"}
    assert not [row for row in report.rows if row.kind == "equal" and not row.passed]
