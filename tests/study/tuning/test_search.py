"""Searches find known minima, and find them again to the very bits when they are told what they were told before."""

import numpy as np
import pytest

from onefold.study.tuning.search import CMAES, Evolution

TARGET = np.array([3, 1, 4, 1, 5, 0])


def sphere(x: np.ndarray) -> float:
    return float(np.square(x - 1).sum())


def rosenbrock(x: np.ndarray) -> float:
    return float((100 * np.square(x[1:] - x[:-1] ** 2) + np.square(1 - x[:-1])).sum())


def ran(search, function, generations: int, known=()):
    history = []
    for n in range(generations):
        candidates = search.ask()
        losses = known[n] if n < len(known) else [function(one) for one in candidates]
        search.tell(candidates, losses)
        history.append(losses)
    return history, candidates


@pytest.mark.parametrize(("function", "generations"), [(sphere, 120), (rosenbrock, 300)])
def test_cma_es_finds_the_minimum_of_known_functions(function, generations):
    pytest.importorskip("cma")
    history, _ = ran(CMAES(8, 12, sigma=0.5, seed=1), function, generations)
    assert min(history[-1]) < 1e-6 < min(history[0])


def test_a_diagonal_search_finds_it_in_many_dimensions():
    pytest.importorskip("cma")
    history, _ = ran(CMAES(200, 20, seed=1, diagonal=True), sphere, 150)
    assert min(history[-1]) < 0.1 * min(history[0])


@pytest.mark.parametrize("make", [lambda: CMAES(10, 8, seed=4), lambda: Evolution(9, 6, 8, seed=4)])
def test_a_search_told_again_goes_on_to_the_bits(make):
    pytest.importorskip("cma")
    history, last = ran(make(), sphere, 30)
    for n in (0, 7, 29):
        np.random.seed(n)  # others draw from numpy's generator, too
        again, same = ran(make(), sphere, 30, history[:n])
        assert again == history
        assert all(np.array_equal(a, b) for a, b in zip(last, same))


def test_seeds_differ():
    pytest.importorskip("cma")
    for make in (lambda s: CMAES(4, 8, seed=s), lambda s: Evolution(9, 4, 8, seed=s)):
        assert not np.array_equal(make(0).ask()[1], make(1).ask()[1])


def test_evolution_finds_a_sequence_of_choices_and_never_asks_twice():
    search = Evolution(8, 6, 20, seed=0, begin=[[0] * 6])
    seen: set[bytes] = set()
    best = 6.0
    for n in range(40):
        candidates = search.ask()
        assert n or not candidates[0].any()
        assert len(candidates) == 20
        assert not seen & {one.tobytes() for one in candidates}
        seen |= {one.tobytes() for one in candidates}
        losses = [float((one != TARGET).sum()) for one in candidates]
        search.tell(candidates, losses)
        best = min(best, *losses)
    assert best == 0
