"""Running averages of batch norm: the same on all processes, averaged with the weights, and never poisoned."""

import json
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onefold.nn.vision.batch_norm import BatchNorm
from onefold.objectives.base import Loss
from onefold.objectives.classification import Classification
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import train
from onefold.training.state import Checkpoints, TrainState

from ..test_pictures import run_of


class Normed(nn.Module):
    """A layer, batch norm, and a buffer that counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Conv2d(1, 3, 1), BatchNorm(3)
        self.register_buffer("count", torch.tensor(0))

    def step(self, optimizer, seed: int) -> dict[str, torch.Tensor]:
        """An update; returns the running averages after it."""
        x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) + seed
        self.norm(self.layer(x)).square().sum().backward()
        self.count += 1
        optimizer.step()
        return {"norm.mean": self.norm.mean.clone(), "norm.variance": self.norm.variance.clone()}


def test_they_are_averaged_over_time_as_weights_are():
    model, decay = Normed(), 0.8
    optimizer = AdamWConfig(ema=decay).build(model)
    past = [model.step(optimizer, seed) for seed in range(4)]
    shares = torch.tensor([decay ** (3 - i) for i in range(4)])
    found = optimizer.averages()
    assert "count" not in found
    for name in past[0]:
        expected = sum(share * buffers[name] for share, buffers in zip(shares / shares.sum(), past))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    with optimizer.averaged():
        assert torch.equal(model.norm.mean, found["norm.mean"])
    assert torch.equal(model.norm.mean, past[-1]["norm.mean"])


def test_a_checkpoint_from_before_they_were_averaged_goes_on(tmp_path):
    model = Normed()
    optimizer = AdamWConfig(ema=0.9).build(model)
    newest = [model.step(optimizer, seed) for seed in range(3)][-1]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(TrainState(step=3), model, optimizer, lambda folder, tensors: None)
    state = tmp_path / "3" / "state"
    told = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(told | {"format": 2, "optimizer": told["optimizer"][:-1]}))
    memory = load_file(state / "optimizer.safetensors")
    save_file(
        {n: t for n, t in memory.items() if not n.startswith(("norm.mean", "norm.var"))},
        state / "optimizer.safetensors",
    )

    model = Normed()
    optimizer = AdamWConfig(ema=0.9).build(model)
    checkpoints.restore(tmp_path / "3", model, optimizer)
    found = optimizer.averages()
    for name, buffer in newest.items():
        torch.testing.assert_close(found[name], buffer)


def test_a_skipped_step_leaves_them_as_they_were(tmp_path, monkeypatch):
    build = Classification.build

    def poisoned(self, frozen=None):
        honest = build(self, frozen)

        def loss(model, batch, step):
            found = honest(model, batch, step)
            return found if step != 2 else Loss({"ce": replace(found.terms["ce"], sum=found.terms["ce"].sum / 0.0)})

        return loss

    steps = {"optimizer.ema": None, "trainer.evaluate_every": None}
    clean = train(run_of("resnet", tmp_path / "clean").but({**steps, "trainer.steps": 2}))
    monkeypatch.setattr(Classification, "build", poisoned)
    skipped = train(run_of("resnet", tmp_path / "skipped").but({**steps, "trainer.steps": 3}))
    before, after = (load_file(result.checkpoint / "model.safetensors") for result in (clean, skipped))
    assert "skipped" in skipped.log[-1]
    assert all(torch.equal(before[name], after[name]) for name in before)
