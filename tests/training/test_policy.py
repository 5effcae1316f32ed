"""Runs whose model learns from what it writes: rollouts, rewards, resuming in the middle of a phase."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from onefold.adapt.merge import merge
from onefold.adapt.surgery import matrices
from onefold.core.errors import UserError
from onefold.infer.model import load
from onefold.interop.artifact import save_artifact
from onefold.study.pages.report import write_report
from onefold.training.run import Run, train
from onefold.training.state import Checkpoints
from tests.training.conftest import WORDS, make_corpus, small_run
from tests.training.processes.test_parallel import CHILD, ROOT, log, train_with_two, weights


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small language model."""
    base = tmp_path_factory.mktemp("start")
    return train(small_run(make_corpus(base / "text"), base / "out").but({"trainer.steps": 30})).out


def learning(start, folder, **changes) -> Run:
    """It is paid for answers with "et", as in beta, zeta and theta."""
    file = folder / "prompts.jsonl"
    if not file.is_file():
        file.write_text("".join(json.dumps({"prompt": f"{word} {i}:"}) + "\n" for i, word in enumerate(WORDS)))
    data = {"kind": "rollout", "path": str(file), "rewards": [{"kind": "pattern", "pattern": "et"}]}
    data |= {"context": 24, "held_out": 0.2, "prompts": 4, "samples": 4, "epochs": 2, "max_new_tokens": 8}
    run = Run.from_dict(
        {
            "data": data,
            "start": str(start),
            "objective": {"kind": "grpo"},
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "trainer": {"steps": 8, "batch": 8, "micro_batch": 4, "device": "cpu", "checkpoint_every": 2},
            "out": str(folder / "out"),
        }
    )
    return run.but({"trainer.schedule": {"kind": "constant"}, **changes})


@pytest.mark.slow
def test_a_policy_learns_what_it_is_paid_for(start, tmp_path):
    changes = {"trainer.steps": 60, "trainer.checkpoint_every": 60, "optimizer.lr": 1e-2, "objective.kl": 0.0}
    changes |= {"data.samples": 8, "trainer.batch": 16, "trainer.micro_batch": 16}
    result = train(learning(start, tmp_path, **changes))
    page, log = write_report(result.out).read_text(), result.log
    assert "Tokens of an answer" in page
    assert log[-1]["held_out"]["loss"] == -log[-1]["held_out"]["reward"]
    before, after = (sum(r["reward"] for r in part) / 8 for part in (log[:8], log[-8:]))
    assert after > before + 0.3


def test_the_first_batch_of_a_run_is_on_policy(start, tmp_path):
    """Also with dropout, which the model was trained with: ratio 1, so nothing is clipped and no KL."""
    first, *_ = train(learning(start, tmp_path)).log
    assert first["policy"] == pytest.approx(0, abs=0.3)
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert first["clipped"] == 0
    assert first["entropy"] > 0


@pytest.mark.parametrize("steps", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_is_that_of_one_never_stopped(start, tmp_path, steps):
    """In the middle of a phase, of which a part of the inner epochs is over, and between two phases."""
    run = learning(start, tmp_path)
    whole = train(run.but({"out": str(tmp_path / "whole")}))
    train(run.but({"trainer.steps": steps}))
    state = Checkpoints(run.out / "checkpoints").stand(run.out / "checkpoints" / str(steps))
    assert ("tokens" in state.loader) == (steps == 3)
    after = train(run)
    for one, other in zip(after.log, whole.log, strict=True):
        assert {k: one[k] for k in ("loss", "reward", "grad_norm")} == {
            k: other[k] for k in ("loss", "reward", "grad_norm")
        }
    weights = [dict(load(result.checkpoint).network.named_parameters()) for result in (after, whole)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("place", ["start", "frozen.reference"])
def test_another_reference_is_no_continuation(start, tmp_path, place):
    run, model, other = learning(start, tmp_path, **{"trainer.steps": 2}), load(start), tmp_path / "other"
    save_artifact(other, model.network, model.config, model.tokenizer)
    run = run.but({"start": str(other)} if place == "start" else {"frozen": {"reference": str(other)}})
    train(run)
    assert train(run.but({"trainer.steps": 3})).step == 3
    torch.nn.init.ones_(next(model.network.parameters()))
    save_artifact(other, model.network, model.config, model.tokenizer)
    with pytest.raises(UserError, match=rf"{place}=\S+ has changed since"):
        train(run.but({"trainer.steps": 4}))


@pytest.mark.slow
def test_adapters_are_compared_with_what_they_adapt(start, tmp_path):
    log = train(learning(start, tmp_path, adapt=[{"kind": "lora", "rank": 2, "dropout": 0.0}])).log
    assert log[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert log[-1]["kl"] > 1e-6


@pytest.mark.slow
def test_a_reference_is_recognised_where_its_adapters_are_merged_with_other_rounding(start, tmp_path, monkeypatch):
    def otherwise(model):
        for matrix in matrices(merge(model).blocks):
            matrix.module.weight.data *= 1 + 1e-6
        return model

    text = small_run(make_corpus(tmp_path / "text"), tmp_path / "tuned")
    lora = {"model": None, "start": str(start), "adapt": [{"kind": "lora", "rank": 2}], "trainer.steps": 2}
    run = learning(train(text.but(lora)).out, tmp_path, **{"trainer.steps": 2})
    train(run)
    monkeypatch.setattr("onefold.interop.adapted.merge", otherwise)
    assert train(run.but({"trainer.steps": 3})).step == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "imitation"])
def test_the_memory_of_phases_is_resumed(start, tmp_path, kind):
    """What PPO's penalty has become, and the best answers of all rounds; the policy opens as a model that writes."""
    more = {"objective.kind": kind, "trainer.steps": 10}
    more |= {"objective.target": 0.01} if kind == "ppo" else {"data.best": 2, "trainer.batch": 8}
    run = learning(start, tmp_path, **more)
    whole = train(run.but({"out": str(tmp_path / "whole")}))
    train(run.but({"trainer.steps": 5}))  # in the middle of a phase
    after = train(run)
    for one, other in zip(after.log, whole.log, strict=True):
        assert one["loss"] == other["loss"]
    if kind == "ppo":
        assert after.log[-1]["penalty"] != after.log[0]["penalty"]
    else:
        assert after.log[-1]["reward"] >= after.log[0]["reward"]
    assert isinstance(load(after.out).generate("alpha", max_new_tokens=2), str)


@pytest.mark.slow
def test_a_kill_within_a_phase_changes_nothing(start, tmp_path):
    """Weights, the optimizer's memory and what was written in the last phase, which is not over, are the same bytes."""
    more = {"objective": {"kind": "ppo", "target": 0.01}, "trainer.steps": 22, "trainer.checkpoint_every": 5}
    run = learning(start, tmp_path, **more)
    whole = train(run.but({"out": str(tmp_path / "whole")}))
    config, environment = tmp_path / "run.json", os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    config.write_text(run.to_json())
    killed = subprocess.Popen([sys.executable, "-c", CHILD, config], env=environment, cwd=ROOT)
    while not (run.out / "checkpoints" / "5").is_dir() or len(log(run)) < 7:
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    checkpoints = Checkpoints(run.out / "checkpoints")
    assert "tokens" in checkpoints.stand(checkpoints.newest_good()).loader  # it was within a phase
    after = train(run)
    for file in ("model.safetensors", "state/optimizer.safetensors", "state/loader.safetensors"):
        assert (after.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


@pytest.mark.slow
def test_two_processes_are_one(start, tmp_path):
    """Each writes its share, draws what one process would draw, and judges all; one goes on within a phase of two."""
    more = {"objective": {"kind": "ppo", "target": 0.01}, "data.best": 2, "trainer.evaluate_every": 2}
    one = learning(start, tmp_path, **more)
    two = one.but({"out": str(tmp_path / "two")})
    train(one)
    train_with_two(two.but({"trainer.steps": 2}))
    assert "from step 2 of 5" in train_with_two(two.but({"trainer.steps": 5}))  # which begins with a phase
    train(two)
    for a, b in zip(log(one), log(two), strict=True):
        for name in ("reward", "length", "held_out"):
            assert a.get(name) == (pytest.approx(b[name], rel=1e-4) if name in a else None)
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    for name, tensor in weights(one, 8).items():
        torch.testing.assert_close(tensor, weights(two, 8)[name], atol=1e-4, rtol=0)


def test_prompts_of_another_file_are_not_learned_from(start, tmp_path):
    run = learning(start, tmp_path)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(lines[:3]) + json.dumps({"prompt": "new"}) + "\n")
    data = run.data.but({"validation": str(tmp_path / "other.jsonl")})
    asked = {split: [row.prompt for s, row in data.rows() if s == split] for split in ("train", "held_out")}
    assert asked["held_out"] == [*(json.loads(line)["prompt"] for line in lines[:3]), "new"]
    assert asked["train"] == [json.loads(line)["prompt"] for line in lines[3:]]


def test_a_phase_has_whole_batches(start, tmp_path):
    with pytest.raises(UserError, match=r"a phase has 16 answers to learn from, no multiple of trainer\.batch=6"):
        train(learning(start, tmp_path, **{"trainer.batch": 6}))


def test_rollouts_need_an_objective_that_judges(start, tmp_path):
    with pytest.raises(UserError, match=r"judges no answers: set objective\.kind to grpo, ppo or imitation"):
        train(learning(start, tmp_path, **{"objective": {"kind": "next_token"}}))


def test_rollouts_need_a_model_that_writes(start, tmp_path):
    run = learning(start, tmp_path).but({"start": None})
    with pytest.raises(UserError, match="has to write already: begin with start="):
        train(run)
