"""The table of parameters: layer-wise decay, schedules of a row's own, parameters that wait."""

import pytest
import torch
from torch import nn

from onefold.core.errors import UserError
from onefold.models import families
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdamWConfig, MuonConfig, Optimizer, local_gradients
from onefold.training.optimizers.schedule import Constant, Linear


class Tower(nn.Module):
    """A stem, three blocks and a classifier, which says how deep each of its parameters lies."""

    depths = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.classifier = nn.Linear(4, 2)

    def depth_of(self, name: str) -> int:
        first, second, *_ = name.split(".")
        return {"stem": 0, "classifier": 4}.get(first) if first != "blocks" else int(second) + 1

    def fill_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator)


def rates(optimizer: Optimizer) -> dict[str, float]:
    return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_each_layer_learns_slower_than_the_one_above():
    rows = (Group(pattern="stem.bias", lr=10.0),)
    found = rates(AdamWConfig(lr=1.0, layer_decay=0.5, groups=rows).build(Tower()))
    expected = {"stem.weight": 1 / 16, "stem.bias": 10 / 16, "classifier.weight": 1.0, "classifier.bias": 1.0}
    expected |= {f"blocks.{i}.{part}": 0.5 ** (3 - i) for i in range(3) for part in ("weight", "bias")}
    assert found == pytest.approx(expected)


def test_a_model_that_tells_no_depths_cannot_have_layer_decay():
    with pytest.raises(UserError, match="does not say how deep"):
        AdamWConfig(layer_decay=0.5).build(nn.Linear(2, 2))


def test_a_row_may_follow_a_schedule_of_its_own():
    own = Linear(warmup=0)
    optimizer = AdamWConfig(lr=1.0, groups=(Group(pattern="stem*", lr=0.1, schedule=own),)).build(Tower())
    optimizer.schedule(lambda schedule: (schedule or Constant(warmup=0)).multiplier(75, 100))
    found = rates(optimizer)
    assert found["stem.weight"] == pytest.approx(0.1 * 0.25)
    assert found["blocks.0.weight"] == optimizer.lr == 1.0
    with pytest.raises(AssertionError):
        optimizer.schedule(0.5)  # one number would not do


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_a_frozen_row_waits_and_then_starts_as_if_training_began_there(kind):
    """Its moments must not remember, nor count, the updates that were not its own."""
    model, late = Tower(), Tower()
    row = Group(pattern="stem*", frozen_until=3)
    waiting, starting = kind(lr=0.1, groups=(row,)).build(model), kind(lr=0.1).build(late)
    before = weights(model)
    for step in range(6):
        model.fill_gradients(step)
        waiting.step()
        if step < 3:
            assert torch.equal(model.stem.weight, before["stem.weight"])
            assert not torch.equal(model.blocks[0].weight, before["blocks.0.weight"])
        else:
            late.fill_gradients(step)
            starting.step()
    torch.testing.assert_close(model.stem.weight, late.stem.weight)
    torch.testing.assert_close(model.stem.bias, late.stem.bias)


def test_what_is_frozen_has_no_say_in_the_gradients_norm():
    model = Tower()
    optimizer = AdamWConfig(groups=(Group(pattern="stem*", frozen_until=1),)).build(model)
    model.fill_gradients(0)
    assert len(local_gradients(optimizer)) == 8
    optimizer.step()
    assert len(local_gradients(optimizer)) == 10


def test_something_must_move_at_first():
    with pytest.raises(UserError, match="every parameter for 5 updates"):
        AdamWConfig(groups=(Group(frozen_until=5),)).build(Tower())


def test_a_frozen_row_is_saved_whole_and_goes_on():
    """A checkpoint from before the thaw has room for all moments, so it can be copied back."""
    rows = (Group(pattern="stem*", frozen_until=3),)
    one, two = Tower(), Tower()
    a, b = (AdamWConfig(lr=0.1, groups=rows).build(model) for model in (one, two))
    for step in range(2):
        one.fill_gradients(step)
        a.step()
    b.make_state()
    state = b.named_state()
    assert set(state) == set(a.named_state())
    for name, tensor in a.named_state().items():
        state[name].copy_(tensor)
    two.load_state_dict(one.state_dict())
    for mine, theirs in zip(b.param_groups, a.param_groups):
        mine["steps"] = theirs["steps"]
    for step in range(2, 5):
        for model, optimizer in ((one, a), (two, b)):
            model.fill_gradients(step)
            optimizer.step()
    for name, p in one.named_parameters():
        assert torch.equal(p, two.get_parameter(name))


def test_configs_from_before_these_columns_say_the_same():
    old = {"kind": "adamw", "lr": 0.1, "groups": [{"pattern": "stem*", "matrices": False, "lr": 0.5}]}
    config = AdamWConfig.from_dict(old)
    assert (config.ema, config.adaptive_clip, config.layer_decay) == (None, None, None)
    groups = config.build(Tower()).param_groups
    assert len(groups) == 4  # matrices and vectors, of the stem and of the rest: no column split them further
    assert not any(group["adaptive_clip"] or group["ema"] or group["frozen_until"] for group in groups)


def test_of_a_state_space_only_what_weighs_its_states_decays_and_nothing_follows_muon():
    model = families.llama2().but({"vocab": 9, "width": 8, "depth": 1, "block.mixer.heads": 2, "block.ffn": None})
    model = model.but({"block.mixer": {"kind": "s4", "states": 4}}).build()
    for config in (AdamWConfig(weight_decay=0.1), MuonConfig(weight_decay=0.1)):
        found = {name: group for group in config.build(model).param_groups for name in group["names"]}
        kernel = {name.removeprefix("blocks.0.mixer.kernel."): g for name, g in found.items() if ".kernel." in name}
        assert {name: group["weight_decay"] for name, group in kernel.items()} == {
            **dict.fromkeys(("log_dt", "log_A_real", "A_imag", "B", "P", "D"), 0.0),
            "C": 0.1,
        }
        assert {group["rule"] for group in kernel.values()} == {"adamw"}
    assert found["blocks.0.mixer.out.weight"]["rule"] == "muon"
