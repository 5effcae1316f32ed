"""Batches by tokens: every pair once, within the budget, little padding, for any number of processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.data.text.pairs.token_batches import plan_tokens


def some_lengths(count: int, context: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, context + 1, (count, 2))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), context=st.integers(1, 40), rows=st.sampled_from([1, 4, 12]), seed=st.integers(0, 9))
def test_every_pair_comes_and_no_batch_is_too_large(count, context, rows, seed):
    lengths = some_lengths(count, context, seed)
    plan = plan_tokens(lengths, context, rows, seed, epoch=3)
    batches = [plan.pairs(slice(b * rows, (b + 1) * rows)) for b in range(plan.batches)]
    assert set(np.concatenate(batches)) == set(range(count))
    for batch in batches:
        assert len(batch) >= rows
        assert len(batch) * lengths[batch].max() <= rows * context
    whole = plan_tokens(lengths, context, rows, fill=False)
    starts = range(0, whole.count, rows)
    read = [whole.pairs(slice(start, min(start + rows, whole.count))) for start in starts]
    assert sorted(np.concatenate(read)) == list(range(count))
    assert len(read) == whole.batches


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_each_batch(world):
    plan = plan_tokens(some_lengths(200, 30), 30, 12)
    for batch in range(plan.batches):
        begin = 12 * batch
        parts = [plan.pairs(slice(begin + 12 // world * r, begin + 12 // world * (r + 1))) for r in range(world)]
        assert np.array_equal(np.concatenate(parts), plan.pairs(slice(begin, begin + 12)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_like_lengths_go_together_in_another_order_each_epoch():
    rng = np.random.default_rng(0)
    lengths = np.stack([n := rng.geometric(0.06, 5000).clip(2, 100), (n + rng.integers(-2, 3, 5000)).clip(1, 100)], 1)
    plans = [plan_tokens(lengths, 100, 16, seed=1, epoch=epoch) for epoch in (0, 1)]
    for plan in plans:
        batches = [plan.pairs(slice(16 * b, 16 * b + 16)) for b in range(plan.batches)]
        room = sum(len(batch) * lengths[batch].max(0).sum() for batch in batches)
        assert lengths.sum() > 0.9 * room
        widest = [lengths[batch].max() for batch in batches]
        assert widest != sorted(widest)
    assert not np.array_equal(plans[0].order, plans[1].order)
    assert np.array_equal(plans[0].order, plan_tokens(lengths, 100, 16, seed=1, epoch=0).order)
