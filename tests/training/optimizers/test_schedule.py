"""Schedules against closed forms."""

import math

import pytest

from onefold.training.optimizers.schedule import WSD, Constant, Cosine, InverseSqrt, Linear, SlantedTriangular


@pytest.mark.parametrize("schedule", [Constant(warmup=10), Linear(warmup=10), Cosine(warmup=10), WSD(warmup=10)])
def test_warm_up_is_a_straight_line_that_starts_above_zero(schedule):
    assert [schedule.multiplier(s, 100) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert schedule.multiplier(10, 100) == 1.0


def test_warm_up_as_a_share():
    assert Constant(warmup=0.25).multiplier(9, 80) == 0.5
    assert Constant(warmup=0).multiplier(0, 80) == 1.0


def test_cosine():
    schedule = Cosine(warmup=20, final=0.1)
    for s in range(20, 120):
        closed = 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * (s - 20) / 100))
        assert schedule.multiplier(s, 120) == pytest.approx(closed)
    assert schedule.multiplier(70, 120) == pytest.approx(0.55)
    assert schedule.multiplier(500, 120) == pytest.approx(0.1)


def test_linear():
    schedule = Linear(warmup=0, final=0.2)
    assert [schedule.multiplier(s, 4) for s in range(4)] == pytest.approx([1, 0.8, 0.6, 0.4])
    assert schedule.multiplier(4, 4) == pytest.approx(0.2)


def test_wsd():
    schedule = WSD(warmup=0, cooldown=0.5)
    assert [schedule.multiplier(s, 8) for s in range(8)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    root = WSD(warmup=0, cooldown=0.5, curve="sqrt", final=0.1)
    assert root.multiplier(5, 8) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.25)))
    assert WSD(warmup=0, cooldown=0).multiplier(7, 8) == 1.0


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine(), WSD()])
def test_never_zero_within_a_run_and_never_above_one(schedule):
    for steps in (1, 2, 7, 100):
        assert all(0 < schedule.multiplier(s, steps) <= 1 for s in range(steps))


@pytest.mark.parametrize(("width", "warmup"), [(512, 4000), (64, 10)])
def test_inverse_square_root_is_the_papers_formula(width, warmup):
    """lrate = d^-0.5 · min(step^-0.5, step · warmup^-1.5), steps from 1; the run's length changes nothing."""
    peak, schedule = (width * warmup) ** -0.5, InverseSqrt(warmup=warmup)
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 10 * warmup):
        formula = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        for steps in (step, 100_000):
            assert peak * schedule.multiplier(step - 1, steps) == pytest.approx(formula, rel=1e-12)


def test_slanted_triangle_is_the_papers_formula():
    """Equation 3 of arXiv 1801.06146; the fall ends at the last step, as theirs does where cut · steps is whole."""
    schedule, steps, cut = SlantedTriangular(cut=0.1, ratio=32), 200, 20
    for t in range(steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / 0.1 - 1))
        assert schedule.multiplier(t, steps) == pytest.approx((1 + p * (32 - 1)) / 32)
    assert schedule.multiplier(0, 3) == pytest.approx(1 / 32)
    assert schedule.multiplier(500, 3) == pytest.approx(1 / 32)
