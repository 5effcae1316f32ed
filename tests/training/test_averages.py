"""Moving averages of weights: their definition, where they are kept, and being tried out."""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onefold.training import estimate
from onefold.training.optimizers.optim import AdamWConfig, MuonConfig
from onefold.training.run import train

from .optimizers.test_optim import Tiny
from .processes.test_parallel import log, train_with_two


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_they_are_the_weighted_mean_of_all_weights_so_far(kind):
    model, decay = Tiny(), 0.8
    optimizer = kind(lr=0.05, ema=decay).build(model)
    assert optimizer.averages() == {}
    past: list[dict[str, torch.Tensor]] = []
    for step in range(4):
        model.fill_gradients(step)
        model.blocks[0].norm.bias.grad = None  # what does not move is averaged too
        optimizer.step()
        past.append({name: p.detach().clone() for name, p in model.named_parameters()})
    shares = torch.tensor([decay ** (3 - i) for i in range(4)])
    shares /= shares.sum()
    found = optimizer.averages()
    assert set(found) == set(past[0])
    for name, average in found.items():
        expected = sum(share * weights[name] for share, weights in zip(shares, past))
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)


def test_they_change_nothing_about_training():
    plain, averaged = Tiny(), Tiny()
    for model, ema in ((plain, None), (averaged, 0.99)):
        optimizer = MuonConfig(ema=ema).build(model)
        for step in range(3):
            model.fill_gradients(step)
            optimizer.step()
    for p, q in zip(plain.parameters(), averaged.parameters()):
        assert torch.equal(p, q)


def test_the_model_tries_them_on_and_gets_its_own_weights_back():
    model = Tiny()
    optimizer = AdamWConfig(lr=0.1, ema=0.9).build(model)
    with optimizer.averaged():
        pass  # nothing is averaged yet
    for step in range(2):
        model.fill_gradients(step)
        optimizer.step()
    before, averages = {name: p.detach().clone() for name, p in model.named_parameters()}, optimizer.averages()
    with suppress(RuntimeError), optimizer.averaged():
        for name, average in averages.items():
            assert torch.equal(model.get_parameter(name), average)
            assert not torch.equal(average, before[name])
        raise RuntimeError("while trying")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_their_memory_is_counted(make_run):
    run = make_run()
    plain, more = (estimate.parameter_bytes(run.model, run.optimizer.but(c)) for c in ({}, {"ema": 0.9}))
    with torch.device("meta"):
        model: nn.Module = run.model.build()
    assert more - plain == sum(p.nbytes for p in model.parameters())


ADDED = {"kind": "adamw", "lr": 0.01, "ema": 0.9, "adaptive_clip": 0.02}


def memory(run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.out / "checkpoints" / str(step) / "state" / "optimizer.safetensors")


def test_a_run_that_was_broken_off_has_the_same_averages(make_run):
    optimizer = ADDED | {"groups": [{"pattern": "embed*", "frozen_until": 6, "schedule": {"kind": "cosine"}}]}
    changes = {"optimizer": optimizer, "trainer.schedule": {"kind": "constant"}}
    whole, parts = make_run(changes), make_run({**changes, "out": make_run().out.with_name("parts")})
    train(whole)
    train(parts.but({"trainer.steps": 4}))
    train(parts)
    kept = memory(whole, 12)
    assert {name.rsplit(".", 1)[1] for name in kept} == {"mean", "square", "average"}
    for name, tensor in memory(parts, 12).items():
        assert torch.equal(tensor, kept[name]), name


def test_a_run_from_before_these_settings_goes_on(make_run):
    """Its config says nothing of them, in the optimizer and in the rows of its table."""
    run = make_run({"optimizer": {"kind": "muon", "groups": [{"pattern": "embed*", "lr": 0.5}]}, "trainer.steps": 4})
    train(run)
    path = run.out / "config.json"
    old = json.loads(path.read_text())
    for name in ("ema", "adaptive_clip", "layer_decay"):
        del old["optimizer"][name]
    for name in ("adaptive_clip", "schedule", "frozen_until"):
        del old["optimizer"]["groups"][0][name]
    path.write_text(json.dumps(old))
    assert train(run.but({"trainer.steps": 5})).step == 5


@pytest.mark.slow
def test_two_processes_are_one(make_run):
    """Rows of matrices are spread whole, vectors are not: both kinds of units must come out the same."""
    changes = {
        "optimizer": ADDED | {"groups": [{"pattern": "*ffn*", "frozen_until": 3}]},
        "model.vocab": 287,
        "model.width": 18,
        "model.block.mixer.heads": 3,
        "model.block.mixer.kv_heads": 1,
        "model.block.dropout": 0.0,
        "trainer.clip": None,
        "trainer.evaluate_every": 4,  # by the averages, of which nothing must be left
    }
    one, two = make_run(changes), make_run({**changes, "out": make_run().out.with_name("two")})
    train(one)
    train_with_two(two)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    for file in ("state/optimizer.safetensors", "state/weights.safetensors", "model.safetensors"):
        ours, theirs = (load_file(run.out / "checkpoints" / "12" / file) for run in (one, two))
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=2e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
