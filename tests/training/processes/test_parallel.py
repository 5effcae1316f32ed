"""Two gloo processes under torchrun against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.models.encoder_families import albert
from onefold.training.processes.parallel import Unit
from onefold.training.run import Run, train

ROOT = Path(__file__).parents[3]
CHILD = "import sys; from onefold.training.run import Run, train; train(Run.from_json(open(sys.argv[1]).read()))"


def train_with_two(run: Run) -> str:
    """Train `run` in two processes; returns what they said."""
    run.out.mkdir(parents=True, exist_ok=True)
    config, script = run.out / "two.json", run.out / "child.py"
    config.write_text(run.to_json())
    script.write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, config]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stderr


def log(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.out / "checkpoints" / str(step) / "model.safetensors")


def pattern_fits(pattern: str, name: str) -> bool:
    return Unit(pattern=pattern).fits(name)


def test_patterns_go_part_by_part():
    assert pattern_fits("blocks.*", "blocks.11")
    assert not pattern_fits("blocks.*", "blocks.11.ffn")
    assert not pattern_fits("blocks.*", "blocks")
    assert pattern_fits("*.blocks.[01]", "encoder.blocks.1")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bound"), [("adamw", 1e-5), ("muon", 1e-4), ("adafactor", 1e-5)])
def test_two_processes_are_one(make_run, kind, bound):
    """20 steps in two micro-batches each, odd shapes (3 heads of width 6, one row of vocabulary more on one side)."""
    changes = {
        "optimizer": {"kind": kind, "lr": 0.01},
        "model.vocab": 287,
        "model.width": 18,
        "model.block.mixer.heads": 3,
        "model.block.mixer.kv_heads": 1,
        "model.block.dropout": 0.0,
        "trainer.steps": 20,
        "trainer.micro_batch": 2,
        "trainer.evaluate_every": 7,
        "trainer.checkpoint_every": 10,
    }
    one, two = make_run(changes), make_run({**changes, "out": make_run().out.with_name("two")})
    train(one)
    train_with_two(two)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=bound)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert a["tokens"] == b["tokens"]
        if "held_out" in a:
            assert a["held_out"]["loss"] == pytest.approx(b["held_out"]["loss"], abs=bound)
    for name, tensor in weights(one, 20).items():
        torch.testing.assert_close(tensor, weights(two, 20)[name], atol=20 * bound, rtol=0)

    # A checkpoint of two goes on in one, and one of one in two.
    assert "from step 20 of 24" in train_with_two(one.but({"trainer.steps": 24}))
    train(two.but({"trainer.steps": 24}))
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2 * bound)


@pytest.mark.slow
def test_two_processes_are_one_where_layers_and_the_embedding_are_shared(make_run, corpus):
    """An ALBERT, whose blocks are units that are applied several times, with the embedding in its masked head."""
    sizes = {"vocab": 300, "width": 18, "depth": 4, "context": 24, "block.mixer.heads": 3, "block.ffn.width": 40}
    model = albert().but(sizes | {"embed.width": 10, "groups": 2, "pooler": False, "classes": 0})
    tokenizer = {"kind": "bpe", "vocab": 280, "special": list(ENCODER_TOKENS)}
    data = {"kind": "masked_text", "sources": [str(corpus)], "context": 24, "tokenizer": tokenizer}
    changes = {"data": data, "model": model, "optimizer": {"kind": "adamw", "lr": 0.01}, "trainer.micro_batch": 2}
    one, two = make_run(changes), make_run({**changes, "out": make_run().out.with_name("two")})
    train(one)
    train_with_two(two)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    for name, tensor in weights(one, 12).items():
        torch.testing.assert_close(tensor, weights(two, 12)[name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_are_one_where_layers_are_state_spaces(make_run):
    """S4D, then S4: vectors and cubes of an odd width, which are never rounded."""
    changes = {
        "model.width": 17,
        "model.block.mixer": {"kind": "s4d", "states": 8},
        "model.block.dropout": 0.0,
        "model.pattern": [{}, {"mixer": {"kind": "s4", "states": 8}}],
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "trainer.micro_batch": 2,
        "trainer.evaluate_every": 6,
    }
    one, two = make_run(changes), make_run({**changes, "out": make_run().out.with_name("two")})
    train(one)
    train_with_two(two)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        if "held_out" in a:
            assert a["held_out"]["loss"] == pytest.approx(b["held_out"]["loss"], abs=1e-5)
    for name, tensor in weights(one, 12).items():
        torch.testing.assert_close(tensor, weights(two, 12)[name], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(make_run):
    """With dropout, whose random numbers differ between processes."""
    constant = {"trainer.schedule": {"kind": "constant"}}
    whole, parts = make_run(constant), make_run({**constant, "out": make_run().out.with_name("parts")})
    train_with_two(whole)
    train_with_two(parts.but({"trainer.steps": 6}))
    train_with_two(parts)
    assert [r["loss"] for r in log(whole)] == [r["loss"] for r in log(parts)]
    for name, tensor in weights(whole, 12).items():
        assert torch.equal(tensor, weights(parts, 12)[name])
