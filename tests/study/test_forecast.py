"""Forecasts on curves whose future is known."""

import json
import math

import numpy as np
import pytest

from onefold.study.forecast import minutes_until

END = 300.0  # seconds


def curve(floor: float, amount: float, p: float, seed: int, gain: float = 0.0, points: int = 24, noise: float = 0.006):
    """A run of five minutes whose last fifth cools down and gains `gain`; and the minutes at which it reaches 1.27."""
    time = np.linspace(END / points, END, points)
    lr = np.minimum(1, (END - time) / (0.2 * END) + 0.05)
    level = floor + amount * time**-p - gain * (1 - lr) + np.random.default_rng(seed).normal(0, noise, points)
    past = 1.27 - (floor - gain * 0.95)
    return time, level, lr, (past / amount) ** (-1 / p) / 60 if past > 0 else math.inf


@pytest.mark.parametrize(
    "shape", [(1.0, 4, 0.4, 0), (1.2, 4, 0.5, 0), (1.2, 4, 0.5, 0.08), (0.5, 3, 0.2, 0), (1.1, 4, 0.4, 0.08)]
)
def test_the_interval_holds_the_truth_most_of_the_time(shape):
    inside, ratios = 0, []
    for seed in range(8):
        *run, truth = curve(*shape[:3], seed, gain=shape[3])
        found = minutes_until(1.27, *run)
        assert found.verdict == "forecast"
        assert found.low <= found.minutes <= (found.high or math.inf)
        inside += found.low <= truth <= (found.high or math.inf)
        ratios.append(found.minutes / truth)
    assert inside >= 5  # of 8; the interval claims 80%
    assert 0.7 < np.median(ratios) < 1.4


@pytest.mark.parametrize("gain", [0, 0.08])
def test_a_curve_that_levels_off_above_is_out_of_reach(gain):
    runs = [curve(1.45, 6, 0.6, seed, gain=gain)[:3] for seed in range(8)]
    found = [minutes_until(1.27, *run, name="xz") for run in runs]
    assert {f.verdict for f in found} <= {"out of reach", "beyond"}  # never a promise
    assert all(f.minutes is None for f in found)
    sure = [f for f in found if f.verdict == "out of reach"]
    assert len(sure) >= 5
    assert np.median([f.floor for f in sure]) == pytest.approx(1.45 - gain, abs=0.02)
    assert all("xz is not within reach of this model size" in f.text for f in sure)


def test_a_target_just_above_the_floor_is_no_confident_forecast():
    *run, truth = curve(1.25, 4, 0.5, seed=1)
    found = minutes_until(1.27, *run)
    assert truth > 600
    assert found.high is None
    assert found.reaching < 0.9


def test_what_fell_is_told_when():
    time, level, lr, _ = curve(1.0, 4, 0.4, seed=0)
    found = minutes_until(1.6, time, level, lr)
    assert found.verdict == "reached"
    assert found.minutes * 60 == pytest.approx(time[np.flatnonzero(level <= 1.6)[0]])


def test_the_cool_down_is_not_mistaken_for_a_steeper_curve():
    informed, blind = [], []
    for seed in range(8):
        *run, lr, truth = curve(1.2, 4, 0.5, seed, gain=0.08)
        informed.append(minutes_until(1.27, *run, lr).minutes / truth)
        blind.append(minutes_until(1.27, *run).minutes / truth)
    assert np.median(blind) < 0.9 < np.median(informed) < 1.1


@pytest.mark.parametrize(
    ("time", "level"), [([], []), ([60, 120, 180], [2.0, 1.8, 1.7]), ([290, 292, 294, 296, 298, 300], [1.5] * 6)]
)
def test_too_little_to_tell(time, level):
    assert minutes_until(1.27, time, level).verdict == "unknown"


def test_broken_points_are_left_out_and_it_all_fits_into_json():
    time, level, lr, truth = curve(1.0, 4, 0.4, seed=7)
    level[[4, 9]] = np.nan
    time[0] = 0
    found = minutes_until(1.27, time, level, lr)
    assert found.minutes == pytest.approx(truth, rel=0.5)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"] == "forecast"


def test_the_same_seed_gives_the_same_forecast():
    *run, _ = curve(1.0, 4, 0.4, seed=8)
    assert minutes_until(1.27, *run) == minutes_until(1.27, *run)


def test_a_flat_or_rising_curve_does_not_break_it():
    time = np.linspace(10, 300, 20)
    for level in (np.full(20, 2.0), np.linspace(1.5, 2.0, 20)):
        assert minutes_until(1.27, time, level).verdict in ("out of reach", "beyond")


def test_a_curve_of_a_part_is_moved_to_the_whole():
    time, level, lr, _ = curve(1.0, 4, 0.4, seed=2)
    whole = minutes_until(1.27, time, level, lr)
    moved = minutes_until(1.27, time, level + 0.1, lr, final=level[-1])
    assert moved.minutes == pytest.approx(whole.minutes)
    assert minutes_until(1.27, time, level + 0.1, lr).minutes > 1.5 * whole.minutes
