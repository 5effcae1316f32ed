"""Which checkpoints are written and kept, and what becomes of damaged ones."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onefold.core.errors import UserError
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.state import Checkpoints, TrainState, in_history, save_due, to_keep


def write(folder, tensors) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


class Setting:
    """A linear model whose steps are marked in its weights."""

    def __init__(self, folder, **keep):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = AdamWConfig().build(self.model)
        self.checkpoints = Checkpoints(folder, **keep)

    def save(self, step: int, best: int | None = None) -> None:
        for p in self.model.parameters():
            p.grad = torch.full_like(p, float(step))
        self.optimizer.step()
        found = {"step": best, "value": 0.5} if best else None
        self.checkpoints.save(TrainState(step=step, losses=[0.1, 1 / 3], best=found), self.model, self.optimizer, write)

    def names(self) -> list[str]:
        return sorted(f.name for f in self.checkpoints.folder.iterdir())


def test_history_is_pythias():
    """arXiv 2304.01373, section 2.1: 0, powers of two up to 512, every 1000 steps."""
    assert [s for s in range(3001) if in_history(s, 1000)] == [
        *(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000)
    ]


def test_when_a_checkpoint_is_due():
    assert [s for s in range(31) if save_due(s, 10, None)] == [10, 20, 30]
    assert [s for s in range(31) if save_due(s, 10, 15)] == [0, 1, 2, 4, 8, 10, 15, 20, 30]


def test_what_is_kept():
    steps = [0, 1, 2, 4, 8, 10, 15, 20, 30, 40]
    assert to_keep(steps, 2, None, None) == {30, 40}
    assert to_keep(steps, 2, 15, None) == {0, 1, 2, 4, 8, 15, 30, 40}
    assert to_keep(steps, 1, None, 10) == {10, 40}


def test_old_ones_go_and_the_best_stays(tmp_path):
    setting = Setting(tmp_path / "c", last=2)
    for step in (1, 2, 3, 4, 5):
        setting.save(step, best=2 if step > 1 else 1)
    assert setting.names() == ["2", "4", "5", "best.json"]
    assert json.loads((tmp_path / "c" / "best.json").read_text()) == {"step": 2, "value": 0.5}


def test_restoring_brings_back_every_bit(tmp_path):
    setting = Setting(tmp_path / "c")
    setting.save(1)
    setting.save(7)
    other = Setting(tmp_path / "c")
    good = other.checkpoints.newest_good()
    assert good.name == "7"
    state = other.checkpoints.stand(good)
    assert (state.step, state.losses) == (7, [0.1, 1 / 3])
    other.checkpoints.restore(good, other.model, other.optimizer)
    for a, b in ((setting, other),):
        assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))
        assert a.optimizer.named_state().keys() == b.optimizer.named_state().keys()
        assert all(torch.equal(t, b.optimizer.named_state()[n]) for n, t in a.optimizer.named_state().items())
        assert (
            [g["steps"] for g in a.optimizer.param_groups] == [g["steps"] for g in b.optimizer.param_groups] == [2, 2]
        )
    setting.save(8)
    weights = load_file(tmp_path / "c" / "8" / "model.safetensors")
    other.save(8)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.model.state_dict().items())


def test_another_model_is_one_line(tmp_path):
    setting = Setting(tmp_path / "c")
    setting.save(1)
    setting.model = nn.Linear(4, 2)
    optimizer = AdamWConfig().build(setting.model)
    with pytest.raises(UserError, match=r"weight is \[2, 3\], the model makes it \[2, 4\]"):
        setting.checkpoints.restore(setting.checkpoints.newest_good(), setting.model, optimizer)


def test_a_state_from_the_future_is_one_line(tmp_path):
    setting = Setting(tmp_path / "c")
    setting.save(1)
    file = tmp_path / "c" / "1" / "state" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="newer Onefold"):
        setting.checkpoints.stand(tmp_path / "c" / "1")


def test_none_at_all(tmp_path):
    assert Checkpoints(tmp_path / "nothing").newest_good() is None
