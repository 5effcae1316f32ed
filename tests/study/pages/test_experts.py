"""Heat maps say what the log does, and lines say what to change."""

import re

import numpy as np
import pytest

from onefold.study.pages.experts import advice, expert_charts, loads
from onefold.study.runs import Log


def record(step, dropped=0.0, **layers):
    return {"step": step, "dropped": dropped, "held_out": {f"load/blocks.{n[1:]}.ffn": s for n, s in layers.items()}}


LOG = Log(
    [{"step": 1, "loss": 1.0}, record(2, a0=[0.5, 0.5, 0.0]), record(4, a0=[0.9, 0.1, 0.0], a11=[0.25] * 4)]
    + [record(step, a0=[0.6, 0.0, 0.4], a11=[0.25] * 4) for step in (6, 8)]
)


def test_what_the_log_has_is_found():
    (steps, shares), (other, even) = loads(LOG).values()
    assert [*steps] == [2, 4, 6, 8]
    assert [*other] == [4, 6, 8]
    assert np.allclose(shares.sum(1), 1)
    assert even.shape == (3, 4)
    assert loads(Log([{"step": 1, "loss": 1.0}])) == {}


def test_idle_experts_of_the_last_evaluation_are_named():
    (line,) = advice(LOG)
    assert line.startswith("blocks.0.ffn: 1 of 3 experts read nothing that was held out (1); raise router.balance")
    assert advice(Log([{"step": 1, "loss": 1.0, "dropped": 0.2}])) == []


def test_a_capacity_that_drops_nearly_everything_is_told():
    (line,) = advice(Log([{"step": step, "dropped": 0.93} for step in range(30)]))
    assert line.startswith("93% of what tokens asked of experts was dropped in the end: raise capacity")


def test_squares_tell_shares():
    end, course = expert_charts(LOG)
    assert end.note == (
        "percent of what was held out; the busiest reads 1.8 times its even share (layer 1), 1 read nothing"
    )
    titles = re.findall("<title>(.*?)</title>", end.wide)
    assert len(titles) == 3 + 4
    assert titles[0] == "blocks.0.ffn, expert 0: 60.0% of all, 1.80 times its even share"
    assert "layer 12" in end.wide
    assert len(re.findall("<title>", course.wide)) == 4 * 3  # the other layer has too few evaluations
    assert expert_charts(Log([{"step": 1, "loss": 1.0}])) == []


@pytest.mark.parametrize("name", ["<b>", "blocks.0.ffn"])
def test_a_log_is_not_trusted(name):
    log = Log([{"step": 1, "held_out": {f"load/{name}": [0.5, "x"], "load/<i>": [0.5, 0.5]}}])
    (chart,) = expert_charts(log)
    assert "<i>" not in chart.wide
    assert "&lt;i&gt;" in chart.wide
