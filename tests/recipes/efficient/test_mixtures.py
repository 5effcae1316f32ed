"""Recipes of experts: published settings, miniatures that train, and the figures that their checks rest on."""

import itertools
import json

import pytest
import torch

import onefold
from onefold import recipes
from onefold.models import seq2seq_families
from onefold.models.transformer import count_parameters
from onefold.recipes.efficient import _experts as world
from onefold.recipes.efficient import megablocks, mixtral, switch
from onefold.study.check import Report
from onefold.training.run import Run

QUICK = {"trainer.steps": 3, "trainer.batch": 4, "trainer.evaluate_every": 3, "trainer.evaluate_batches": 2}


def test_the_settings_of_the_papers():
    run = switch.recipe()
    assert (run.trainer.batch * run.data.context, run.trainer.steps) == (2**20, 550_000)
    assert run.model == seq2seq_families.switch("base", 128)
    assert Run.from_json(run.to_json()) == run
    run = megablocks.recipe()
    assert run.trainer.batch * run.data.context * run.trainer.steps == pytest.approx(10e9, rel=1e-4)
    assert (run.model.block.ffn.experts, run.model.block.ffn.capacity) == (64, None)


def test_a_token_is_multiplied_with_its_own_experts_alone():
    mixture, dense = world.small(mixtral.of(8, 64)).model, world.small(mixtral.of(None, 64)).model
    routers = 2 * 8 * 32
    assert world.active(mixture) - routers == world.active(dense) == count_parameters(dense) < count_parameters(mixture)
    assert megablocks.multiplied(100) == 100


def test_the_world_of_facts_is_as_told(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "FOLDER", tmp_path)
    monkeypatch.setattr(world, "TEXTS", {"read": 3000, "held-out": 5})
    store = world.world()
    dataset = world.small(switch.DENSE).data.prepare(tmp_path / "data")
    assert dataset.tokenizer.size == world.small(switch.DENSE).model.vocab == 257
    assert len(list(dataset.text("held_out"))) == 5
    follows: dict[str, set[str]] = {}
    for line in (tmp_path / "read.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        assert len(text) == world.LENGTH + 1
        for before, after in itertools.pairwise(text[1:]):
            follows.setdefault(text[0] + before, set()).add(after)
    assert 0.9 * 32 * 52 < len(follows) <= 32 * 52
    assert max(map(len, follows.values())) == 2
    assert world.world() == store  # which is made once


class Logged:
    """A run that was."""

    run = None

    def __init__(self, *held_out: tuple[int, float]):
        self.log = [{"step": step, "held_out": {"loss": loss}} for step, loss in held_out]
        self.step = held_out[-1][0]


def test_steps_and_time_to_a_loss_are_read_between_evaluations(tmp_path, monkeypatch):
    slow, fast = Logged((10, 4.0), (20, 3.0)), Logged((10, 3.5), (20, 2.5))
    assert (world.reached(slow, 3.0), world.reached(fast, 3.0), world.reached(slow, 2.0)) == (20, 15, None)
    monkeypatch.setattr(world, "paces", lambda _: {"dense": 1.0, "mixture": 2.0})
    report = Report("some", tmp_path)
    world.scaling(report, {"dense": [slow] * 3, "mixture": [fast] * 3}, "text")
    rows = {row.name: row.value for row in report.rows}
    assert rows["text: seeds of 3 that reach the dense model's loss, mixture"] == "3"
    shares = [float(rows[f"text: its share of the {what}, mixture"]) for what in ("steps", "time")]
    assert shares == [0.75, 1.5]
    report = Report("some", tmp_path)
    world.scaling(report, {"dense": [fast] * 3, "mixture": [fast, fast, slow]}, "text")
    assert not any("share" in row.name for row in report.rows)  # of seeds that never arrive there is no mean


def test_steps_of_all_kinds_are_timed():
    times = world.paces({"dense": world.small(switch.DENSE), "mixture": world.small(switch.of(4))}, rounds=1)
    assert list(times) == ["dense", "mixture"]
    assert min(times.values()) > 0


@pytest.mark.slow
def test_a_switch_miniature_trains_and_is_tuned_on_tasks(tmp_path):
    (tmp_path / "text").mkdir()
    for n in range(12):
        (tmp_path / "text" / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    before = onefold.train("switch", tiny=True, data=str(tmp_path / "text"), out=str(tmp_path / "run"), **QUICK)
    assert 0 <= before.log[-1]["dropped"] < 1
    assert isinstance(onefold.load(before.out).generate("the quick fox", max_new_tokens=4), str)
    rows = [{"input": f"repeat: {n}", "target": str(n)} for n in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"tiny": True, "start": str(before.out), "pairs": str(tmp_path / "tasks.jsonl")}
    after = onefold.train("flan_moe", frozen_router=True, out=str(tmp_path / "told"), **told, **QUICK)
    weights = [onefold.load(result.out).network.state_dict() for result in (before, after)]
    for name, was in weights[0].items():
        assert torch.equal(was, weights[1][name]) == ("router" in name), name


def test_recipes_resolve():
    assert 0.8e6 < count_parameters(recipes.resolve("switch", tiny=True).model) < 1.5e6
    for name in ("switch", "flan_moe"):
        for tiny in (False, True):
            run = recipes.resolve(name, tiny=tiny)
            assert Run.from_json(run.to_json()) == run
