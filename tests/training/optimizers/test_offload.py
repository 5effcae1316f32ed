"""An optimizer whose memory lies on the host does what it does with it beside the weights, to the last bit."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.training import estimate
from onefold.training.optimizers import offload
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdafactorConfig, AdamWConfig, MuonConfig, SGDConfig
from onefold.training.optimizers.rules import memory_bytes
from onefold.training.run import train
from tests.training.optimizers.test_optim import Tiny
from tests.training.processes.test_parallel import train_with_two


@pytest.fixture(params=[1, 600, 2**28])
def part(request, monkeypatch):
    """A parameter at a time; two or three; all of a group."""
    monkeypatch.setattr(offload, "PART", request.param)


@pytest.mark.parametrize(
    "config",
    [
        AdamWConfig(ema=0.9, adaptive_clip=0.1, groups=(Group(pattern="embed.*", frozen_until=2),)),
        MuonConfig(lr=0.02, weight_decay=0.1),
        SGDConfig(ema=0.5),
        AdafactorConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_updates_are_the_same(part, config):
    plain, kept = Tiny(), Tiny()
    a, b = config.build(plain), config.but({"offload": True}).build(kept)
    for step in range(4):
        for model, optimizer in ((plain, a), (kept, b)):
            model.fill_gradients(step)
            model.blocks[0].norm.bias.grad = None
            optimizer.step()
    assert all(map(torch.equal, plain.parameters(), kept.parameters()))
    state, averages = a.named_state(), a.averages()
    assert {*b.named_state()} == {*state}
    assert all(torch.equal(tensor, state[name]) for name, tensor in b.named_state().items())
    assert all(torch.equal(tensor, averages[name]) for name, tensor in b.averages().items())


def test_a_run_may_change_over(make_run):
    """Also when it goes on: where memory lies is no part of what a run is."""
    shared = {"trainer.schedule": {"kind": "constant"}, "trainer.evaluate_every": 2, "optimizer.ema": 0.9}
    whole = train(make_run({**shared, "trainer.steps": 4}))
    parts = make_run({**shared, "out": make_run().out / "parts"})
    for steps, kept in ((2, True), (3, False), (4, True)):
        last = train(parts.but({"trainer.steps": steps, "optimizer.offload": kept}))
        assert last.step == steps
    for file in ("model.safetensors", "state/weights.safetensors", "state/optimizer.safetensors"):
        assert (last.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


def test_memory_is_planned_for(make_run, monkeypatch):
    model, config = make_run().model.but({"depth": 12}), AdamWConfig(offload=True)
    monkeypatch.setattr(offload, "PART", 2**13)
    optimizer = config.build(model.build())
    optimizer.make_state()
    kept = sum(map(memory_bytes, optimizer.param_groups))
    sizes = [part.bytes for part in optimizer.offload.parts]
    assert kept <= sum(sizes) <= optimizer.offload.host_bytes < 2 * kept
    assert optimizer.offload.device_bytes == 3 * max(sizes) < kept
    plenty, little = 10**9, kept // 2
    free = {"cpu": plenty, "meta": 2 * sum(p.nbytes for p in model.build().parameters()) + 3 * max(sizes)}
    monkeypatch.setattr(estimate, "free_bytes", lambda device: free[device.type])
    beside = torch.device("meta")
    assert estimate.check_memory(model, config, beside) == (free["meta"], free["meta"])
    with pytest.raises(UserError, match=r"or optimizer\.offload=true"):
        estimate.check_memory(model, AdamWConfig(), beside)
    free["cpu"] = little
    with pytest.raises(UserError, match=r"optimizer\.offload needs .* of the host's memory"):
        estimate.check_memory(model, config, beside)


@pytest.mark.slow
def test_two_processes_go_on_to_the_same_bits(make_run):
    """Muon, which gathers matrices, and AdamW, which does not."""
    changes = {"trainer.schedule": {"kind": "constant"}, "trainer.evaluate_every": 2, "optimizer.ema": 0.9}
    run = make_run({**changes, "trainer.steps": 4, "trainer.checkpoint_every": 2})
    train_with_two(run)
    plain = run.out / "plain"
    (run.out / "checkpoints" / "4").rename(plain)
    train_with_two(run.but({"optimizer.offload": True}))
    for file in ("model.safetensors", "state/weights.safetensors", "state/optimizer.safetensors"):
        assert (run.out / "checkpoints" / "4" / file).read_bytes() == (plain / file).read_bytes()
