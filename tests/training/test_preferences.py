"""Runs that learn from preferences: a reference that is asked once, and what a run begins with."""

import json
import math
import random

import pytest
import torch

import onefold.training.reference as reference
from onefold.core.errors import UserError
from onefold.infer.model import load
from onefold.training.log import read_log
from onefold.training.run import Run, train
from tests.training.conftest import WORDS, make_corpus, small_run
from tests.training.processes.test_parallel import train_with_two


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small language model."""
    base = tmp_path_factory.mktemp("start")
    return train(small_run(make_corpus(base / "text"), base / "out")).out


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(file, count: int = 40):
    """People like "alpha"."""
    generator = random.Random(0)
    rows = []
    for i in range(count):
        answer = " ".join(generator.choices(WORDS[1:], k=generator.randint(1, 3)))
        rows.append({"prompt": f"{WORDS[i % 12]} {i}:", "chosen": f" alpha {answer}", "rejected": f" {answer}"})
    return write(file, rows)


def labels(file, count: int = 40):
    rows = []
    for i in range(count):
        rows.append({"prompt": f"{i}:", "completion": " alpha beta" if i % 2 else f" {WORDS[i % 12]}", "label": i % 2})
    return write(file, rows)


def preferring(start, path, out) -> Run:
    data = {"kind": "preferences", "path": path, "context": 24, "held_out": 0.2}
    trainer = {"steps": 8, "batch": 8, "micro_batch": 4, "device": "cpu", "checkpoint_every": 2}
    return Run.from_dict(
        {
            "data": data,
            "start": str(start) if start else None,
            "objective": {"kind": "preference"},
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "trainer": trainer,
            "out": str(out),
        }
    )


def quiet(start):
    """The start without its dropout, which would set policy and reference apart."""
    config = load(start).config
    return config.but({"block.dropout": 0.0}).to_dict()


LOSSES = {
    "dpo": ({"kind": "preference", "loss": {"kind": "dpo", "beta": 0.3}}, math.log(2)),
    "ipo": ({"kind": "preference", "loss": {"kind": "ipo", "beta": 0.5}}, 1 / (4 * 0.5**2)),
    "kto": ({"kind": "kto"}, 0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_at_the_reference_losses_are_what_algebra_says(start, tmp_path, name):
    objective, expected = LOSSES[name]
    kto = objective["kind"] == "kto"
    path = (labels if kto else pairs)(tmp_path / "rows.jsonl")
    run = preferring(start, path, tmp_path / "out").but({"data.task": "labels" if kto else "pairs"})
    result = train(run.but({"objective": objective, "model": quiet(start), "trainer.steps": 2}))
    assert result.log[0]["loss"] == pytest.approx(expected, abs=2e-5)
    assert result.log[1]["loss"] < expected  # and goes down


@pytest.mark.parametrize("loss", ["dpo", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ipo", "orpo", "simpo"))])
def test_what_people_prefer_becomes_likelier(start, tmp_path, loss):
    run = preferring(start, pairs(tmp_path / "rows.jsonl"), tmp_path / "out")
    changes = {"objective.loss.kind": loss, "trainer.steps": 40, "optimizer.lr": 3e-3, "trainer.checkpoint_every": 40}
    held_out = train(run.but(changes)).log[-1]["held_out"]
    assert held_out["accuracy"] > 0.8
    assert held_out["margin"] == pytest.approx(held_out["chosen"] - held_out["rejected"], abs=1e-5)
    assert ("kl" in held_out) == (loss in ("dpo", "ipo"))


def test_a_resumed_run_asks_nobody(start, tmp_path, monkeypatch):
    """Nor does it open the model that it began with; its losses are those of a run that was never stopped."""
    path = pairs(tmp_path / "rows.jsonl")
    run = preferring(start, path, tmp_path / "out").but({"trainer.schedule": {"kind": "constant"}})
    whole = train(run.but({"out": str(tmp_path / "whole")}))
    train(run.but({"trainer.steps": 4}))
    monkeypatch.setattr(reference, "ask", lambda *_: pytest.fail("it was asked again"))
    monkeypatch.setattr("onefold.training.run.open_model", lambda *_: pytest.fail("the start was opened again"))
    assert [r["loss"] for r in train(run).log] == [r["loss"] for r in whole.log]


@pytest.mark.slow
def test_what_the_reference_said_can_be_asked_again(start, tmp_path):
    """Where it is lost, the start is opened and asked, and training goes on from its checkpoint."""
    path = pairs(tmp_path / "rows.jsonl")
    run = preferring(start, path, tmp_path / "out").but({"trainer.schedule": {"kind": "constant"}})
    train(run.but({"trainer.steps": 4}))
    (said,) = (tmp_path / "out" / "data").glob("preferences-*-*")
    (said / "train" / "00000.arrow").write_bytes(b"damaged")
    again = [r["loss"] for r in train(run).log]
    assert again == [r["loss"] for r in train(run.but({"out": str(tmp_path / "whole")})).log]


@pytest.mark.slow
def test_the_reference_may_be_another_model(start, tmp_path):
    path = pairs(tmp_path / "rows.jsonl")
    near = train(preferring(start, path, tmp_path / "near"))
    run = preferring(near.out, path, tmp_path / "out").but({"trainer.steps": 1})
    same = train(run).log[0]
    other = {"frozen": {"reference": str(start)}, "out": str(tmp_path / "other")}
    found = train(run.but(other)).log[0]
    assert found["chosen"] != pytest.approx(same["chosen"], abs=1e-3)


@pytest.mark.slow
def test_a_reference_of_another_tokenizer_is_refused(start, tmp_path):
    other = train(small_run(make_corpus(tmp_path / "text"), tmp_path / "other").but({"data.tokenizer.vocab": 270}))
    run = preferring(start, pairs(tmp_path / "rows.jsonl"), tmp_path / "out")
    with pytest.raises(UserError, match="has another tokenizer"):
        train(run.but({"frozen": {"reference": str(other.out)}}))


def test_preferences_need_somebody_to_compare_with(start, tmp_path):
    run = preferring(start, pairs(tmp_path / "rows.jsonl"), tmp_path / "out")
    fresh = {"start": None, "model": quiet(start), "data.tokenizer": {"kind": "bpe", "vocab": 280}}
    with pytest.raises(UserError, match=r"begin with a model \(start=…\) or name one"):
        train(run.but(fresh))
    assert train(run.but({**fresh, "objective.loss.kind": "orpo", "trainer.steps": 1})).step == 1


def test_data_and_objective_must_fit(start, tmp_path):
    run = preferring(start, labels(tmp_path / "rows.jsonl"), tmp_path / "out").but({"data.task": "labels"})
    with pytest.raises(UserError, match=r"set objective\.kind to kto"):
        train(run)


@pytest.mark.slow
def test_micro_batches_change_nothing(start, tmp_path):
    """Also where rows are compared with the mean of a whole batch."""
    rows = {"preference": pairs(tmp_path / "pairs.jsonl"), "kto": labels(tmp_path / "labels.jsonl")}
    for kind, path in rows.items():
        run = preferring(start, path, tmp_path / "out").but({"objective.kind": kind, "model": quiet(start)})
        run = run.but({"data.task": "labels" if kind == "kto" else "pairs", "trainer.steps": 4})
        logs = [
            train(run.but({"trainer.micro_batch": micro, "out": str(tmp_path / f"{kind}{micro}")})).log
            for micro in (8, 3)
        ]
        for one, other in zip(*logs):
            assert one["loss"] == pytest.approx(other["loss"], abs=2e-6)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_adapters_are_compared_with_what_they_adapt(start, tmp_path):
    run = preferring(start, pairs(tmp_path / "rows.jsonl"), tmp_path / "out")
    result = train(run.but({"adapt": [{"kind": "lora", "rank": 2}], "trainer.steps": 2}))
    assert result.log[0]["margin"] == pytest.approx(0, abs=0.2)  # but for dropout
    assert load(result.out).generate("alpha", max_new_tokens=2) is not None


def test_a_reward_model_scores_answers(start, tmp_path):
    run = preferring(start, pairs(tmp_path / "rows.jsonl"), tmp_path / "out").but({"objective.kind": "reward"})
    changes = {"objective.centre": 0.01, "trainer.steps": 40, "optimizer.lr": 3e-3, "trainer.checkpoint_every": 40}
    result = train(run.but(changes))
    assert result.log[0]["bt"] == pytest.approx(math.log(2), abs=0.1)
    assert result.log[-1]["held_out"]["accuracy"] > 0.9
    model = load(result.out)
    said = ["alpha beta", "beta"]
    scores = model.score(["gamma 3:"] * 2, [f" {text}" for text in said])
    assert scores[0] > scores[1]
    dataset = run.data.prepare(tmp_path / "out" / "data", load(start).tokenizer)
    batch = dataset.rows("train", torch.arange(3).numpy())
    prompts, chosen, rejected = zip(*list(dataset.texts("train"))[:3])
    from onefold.objectives.reward import scores_of

    with torch.no_grad():
        expected = scores_of(model.network, batch)
    for side, answers in enumerate((chosen, rejected)):
        torch.testing.assert_close(model.score(prompts, answers), expected[:, side], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.network.classifier.out.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="is nan"):
        model.score(["alpha"], ["beta"])


@pytest.mark.slow
def test_two_processes_are_one(start, tmp_path):
    """They share the asking, and KTO's mean is that of both. An odd number of rows, so that one has less to ask."""
    run = preferring(start, labels(tmp_path / "rows.jsonl", 37), tmp_path / "one")
    changes = {"objective.kind": "kto", "model": quiet(start), "data.task": "labels", "trainer.micro_batch": 2}
    one = run.but(changes)
    two = one.but({"out": str(tmp_path / "two")})
    train_with_two(two)
    expected, found = train(one).log, read_log(two.out / "log.jsonl")
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], abs=1e-5)
    assert found[-1]["held_out"] == pytest.approx(expected[-1]["held_out"], abs=1e-4)
