from itertools import permutations

import numpy as np
import pytest

from onefold.infer.evaluation.contact_precision import RANGES, SHARES, mean_precisions, precision, precisions


def by_definition(scores, contacts, known, low, high, share):
    """Pairs in the order of their scores, one by one; of pairs that tie, over all their orders."""
    L = len(scores)
    pairs = [
        (scores[i, j], contacts[i, j])
        for i in range(L)
        for j in range(i + 1, L)
        if known[i] and known[j] and j - i >= low and (high is None or j - i < high)
    ]
    places = max(1, int(np.floor(share * sum(known) + 1e-9)))
    found = []
    for order in permutations(pairs) if len(pairs) < 8 else [pairs]:
        best = sorted(order, key=lambda pair: -pair[0])[:places]  # a stable sort
        found.append(sum(touch for _, touch in best) / places)
    return np.mean(found)


@pytest.mark.parametrize("seed", range(6))
def test_precision_is_that_of_the_definition(seed):
    generator = np.random.default_rng(seed)
    L = int(generator.integers(30, 70))
    scores, touch = generator.normal(size=(L, L)), generator.random((L, L)) < 0.1
    known = generator.random(L) < (1.0 if seed < 3 else 0.8)
    found = precisions(scores, touch, known)
    for name, (low, high) in RANGES.items():
        for label, share in SHARES.items():
            assert found[name][label] == pytest.approx(by_definition(scores, touch, known, low, high, share))


def test_ties_count_as_the_mean_over_all_orders():
    generator = np.random.default_rng(1)
    for _ in range(20):
        L = 9  # 6 pairs at separations of 6 and more
        scores = np.round(generator.random((L, L)) * 2)
        touch = generator.random((L, L)) < 0.5
        for share in (0.2, 0.5, 1.0):
            expected = by_definition(scores, touch, np.ones(L, bool), 6, None, share)
            assert precision(scores, touch, low=6, share=share) == pytest.approx(expected)


def test_what_nothing_is_said_of_comes_last_and_lacking_pairs_are_misses():
    touch = np.ones((12, 12), bool)
    scores = np.full((12, 12), np.nan)
    scores[0, 6], touch[0, 6] = -5.0, False
    assert precision(scores, touch, low=6, share=0.1) == 0  # one place, the only pair with a score
    assert precision(np.zeros((8, 8)), np.ones((8, 8), bool), low=6) == pytest.approx(3 / 8)  # 3 pairs, 8 places


def test_means_are_over_chains():
    one, two = ({name: dict.fromkeys(SHARES, value) for name in RANGES} for value in (0.2, 0.6))
    assert mean_precisions([one, two])["long"]["P@L/5"] == pytest.approx(0.4)
