"""The recipe of Zephyr: its two stages, and the synthetic world that its check goes by."""

import pytest

from onefold import recipes
from onefold.core.errors import UserError
from onefold.data.text.chat.answers import read_answers
from onefold.infer.teaching.feedback import FeedbackConfig, feedback
from onefold.infer.teaching.judges import judge_by_template
from onefold.recipes.alignment import _feedback, zephyr
from onefold.recipes.alignment import _teaching as world
from onefold.training.run import Run


def test_zephyr_is_a_run_for_each_stage():
    first = recipes.resolve("zephyr", {"start": "runs/base"})
    then = recipes.resolve("zephyr", {"start": "runs/zephyr-sft", "stage": "dpo", "data": "mine.jsonl"})
    assert (first.optimizer.lr, first.trainer.batch) == (2e-5, 512)
    assert Run.from_json(then.to_json()) == then
    assert (then.optimizer.lr, then.trainer.batch, then.objective.loss.beta) == (5e-7, 32, 0.1)
    assert then.data.path == "mine.jsonl"
    with pytest.raises(UserError, match="give start=MODEL, the run of stage=sft"):
        recipes.resolve("zephyr", {"stage": "dpo"})
    with pytest.raises(UserError, match="no stage ppo"):
        recipes.resolve("zephyr", {"stage": "ppo"})


def test_the_judge_of_the_synthetic_world_is_right_mostly(tmp_path):
    """Its preferences are those of the known quality more often than not, and the good author wins most."""
    assert _feedback.follows("dog bridge", "the old dog sees the small red bridge.")
    assert not _feedback.follows("dog bridge", "the bridge sees the dog.")
    assert not _feedback.follows("dog bridge", "the dog sees the bridge")
    assert _feedback.quality("dog cat", "the red dog sees the cat.") > _feedback.quality(
        "dog cat", "the dog sees the cat."
    )
    assert _feedback.quality("dog cat", "the dog sees the cat near the tree.") < 0
    config = FeedbackConfig(prompts=zephyr._prompts(tmp_path, 0), out=tmp_path / "pairs.jsonl")
    done = feedback(config, judge_by_template(_feedback.Rater(), ["helpfulness"]), _feedback.AUTHORS)
    assert done.best.most_common(1)[0][0] == "good"
    assert 0 < done.unread < 60
    right = [
        _feedback.quality(row.prompt, row.answers[0]) > _feedback.quality(row.prompt, row.answers[1])
        for row in read_answers(config.out, "pairs")
    ]
    assert 0.85 < sum(right) / len(right) < 1
    learned, tested = _feedback.prompts(0)
    assert not set(learned) & set(tested)


def test_style_is_the_form_of_an_answer_whatever_it_says(monkeypatch):
    said = ["3 4 3 0 0 2", "1 1 1 1 1 1", "2", "3 4 3 0 0 2 1"]
    monkeypatch.setattr(world, "_answers", lambda *_: said)
    assert world.style(None, ["sum"] * 4) == 0.5
