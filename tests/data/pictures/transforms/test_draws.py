import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefold.data.draws import Draws


def splitmix64(state, count):
    """The published generator, in plain integers."""
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_each_row_has_the_published_generator():
    draws = Draws(3, 4, np.array([5, 6]))
    states = draws._states.tolist()
    found = np.concatenate((draws.bits(3), draws.bits(2)), axis=1)
    assert found.tolist() == [list(splitmix64(state, 5)) for state in states]
    assert next(splitmix64(1234567, 1)) == 6457827717110365317  # the reference implementation's first number


@given(st.integers(0, 2**63), st.integers(0, 1000), st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_a_row_draws_the_same_in_any_company(seed, epoch, rows):
    together = Draws(seed, epoch, np.array(rows)).stream(2).uniform(3)
    for row, found in zip(rows, together):
        assert np.array_equal(Draws(seed, epoch, np.array([row]), 2).uniform(3)[0], found)


def test_numbers_out_of_turn_are_those_that_come_in_turn():
    draws = Draws(1, 2, np.array([30, 40]))
    rows, places = np.array([1, 0, 1, 1]), np.array([2, 0, 5, 2])
    assert np.array_equal(draws.uniform_at(rows, places), draws.uniform(6)[rows, places])


def test_seeds_epochs_rows_and_streams_all_differ():
    found = [Draws(s, e, np.arange(5), k).uniform(1) for s in range(5) for e in range(5) for k in range(5)]
    assert len(np.unique(found)) == 5**4


def test_distributions():
    draws = Draws(0, 0, np.arange(40_000))
    uniform, normal = draws.uniform(4), draws.normal()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean(0) == pytest.approx(0.5, abs=0.01)
    assert uniform.var(0) == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(uniform.T) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(uniform[:-1, 0], uniform[1:, 0])[0, 1]) < 0.02  # neighbours
    assert (normal.mean(), normal.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert len(draws.which(0.3)) == pytest.approx(12_000, rel=0.05)
