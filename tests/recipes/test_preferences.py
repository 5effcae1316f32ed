"""The recipes of preferences: what they resolve to, and the synthetic world that their checks go by."""

import numpy as np
import pytest

from onefold import recipes
from onefold.core.errors import UserError
from onefold.data.text.pairs.synthetic import NOUNS
from onefold.recipes.alignment import _preferences as synthetic
from onefold.recipes.alignment import rlhf
from onefold.training.run import Run


@pytest.mark.parametrize("name", ["dpo", "reward", "rlhf"])
def test_they_need_data_and_a_model(name):
    with pytest.raises(UserError, match="data=FILE start=MODEL"):
        recipes.resolve(name)
    run = recipes.resolve(name, {"data": "pairs.jsonl", "start": "runs/chat", "trainer.batch": 8})
    assert (run.data.path, run.start, run.trainer.batch) == ("pairs.jsonl", "runs/chat", 8)
    assert Run.from_json(run.to_json()) == run


def test_a_loss_is_named():
    given = {"data": "rows.jsonl", "start": "runs/chat"}
    run = recipes.resolve("dpo", {**given, "loss": "kto"}, tiny=True)
    assert (run.objective.kind, run.data.task, run.out.name) == ("kto", "labels", "kto")
    assert recipes.resolve("dpo", {**given, "loss": "cdpo"}).objective.loss.smoothing > 0
    with pytest.raises(UserError, match="there is no loss ppo"):
        recipes.resolve("dpo", {**given, "loss": "ppo"})


def test_a_method_is_named():
    given = {"data": "rows.jsonl", "start": "runs/chat", "method": "best_of", "reward": "runs/reward"}
    run = recipes.resolve("rlhf", given)
    assert (run.objective.kind, run.data.best, run.data.rewards[0].model) == ("imitation", 1, "runs/reward")
    assert recipes.resolve("rlhf", {**given, "method": "ppo"}).objective.kind == "ppo"
    both = recipes.resolve("rlhf", {**given, "method": "ppo", "safety": "runs/safe"})
    assert both.objective.whiten_rewards
    assert [both.data.rewards[0].helpfulness.model, both.data.rewards[0].safety.model] == ["runs/reward", "runs/safe"]
    with pytest.raises(UserError, match="give reward=MODEL, too"):
        recipes.resolve("rlhf", {**given, "reward": None, "safety": "runs/safe"})
    with pytest.raises(UserError, match="there is no method dpo"):
        recipes.resolve("rlhf", {**given, "method": "dpo"})


def test_the_best_of_more_answers_is_better(tmp_path):
    """By the mean over prompts of the largest of each n answers."""
    world = synthetic.World(0, tmp_path)
    said = ["dog", "red dog", "near dog", "red red dog"]
    world.__dict__["sampled"] = [synthetic.Answer(noun, text, [], []) for text in said for noun in NOUNS]
    rewards = [synthetic.reward(text) for text in said]
    assert rlhf.best_of(world, 1) == pytest.approx(np.mean(rewards))
    assert rlhf.best_of(world, 2) == pytest.approx((max(rewards[:2]) + max(rewards[2:])) / 2)


def test_the_best_policies_trade_reward_for_distance(tmp_path):
    """At a large β nothing changes; a smaller one gives more reward, further away, up to the best answer seen."""
    world = synthetic.World(0, tmp_path)
    generator = np.random.default_rng(0)
    said = [" ".join(generator.choice(["red", "dog", "near", "sees"], 6)) for _ in range(40 * len(NOUNS))]
    world.__dict__["sampled"] = [synthetic.Answer(NOUNS[i % len(NOUNS)], text, [], []) for i, text in enumerate(said)]
    rewards, distances = zip(*world.best([1e6, 3.0, 1.0, 0.3, 1e-3]))
    assert rewards[0] == pytest.approx(np.mean([synthetic.reward(text) for text in said]), abs=1e-3)
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert sorted(rewards) == list(rewards)
    assert sorted(distances) == list(distances)
    best = [max(synthetic.reward(t) for t in said[n :: len(NOUNS)]) for n in range(len(NOUNS))]
    assert rewards[-1] == pytest.approx(np.mean(best), abs=1e-6)
