"""Depth that depends on the token, in two gloo processes and in one."""

import pytest
import torch

from onefold.training.run import train
from tests.training.processes.test_parallel import log, train_with_two, weights

DEPTHS = {
    "repeated": {"model.repeat": {"steps": 3, "halting": {"ponder": 0.1, "bias": 0.0}}},
    "routed": {"model.pattern": [{}, {"route": {"capacity": 0.3, "weight": 0.1}}]},
    "routed beside": {"model.pattern": [{}, {"route": {"capacity": 0.3, "predictor": "beside"}}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEPTHS)
def test_two_processes_are_one(make_run, kind):
    """Blocks that a unit gathers several times, halting and routers in units of others; evaluations in between."""
    changes = DEPTHS[kind] | {"optimizer": {"kind": "adamw", "lr": 0.01}, "model.block.dropout": 0.0}
    changes |= {"trainer.evaluate_every": 5}
    one, two = make_run(changes), make_run({**changes, "out": make_run().out.with_name("two")})
    train(one)
    train_with_two(two)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        if "held_out" in a:
            assert a["held_out"]["loss"] == pytest.approx(b["held_out"]["loss"], abs=1e-5)
    for name, tensor in weights(one, 12).items():
        torch.testing.assert_close(tensor, weights(two, 12)[name], atol=1e-4, rtol=0)
