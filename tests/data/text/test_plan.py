from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.data.text.plan import Plan, cut, pack, plan_evaluation, plan_mixture, plan_rows

documents = st.lists(st.integers(0, 70), max_size=60).map(lambda x: np.array(x, np.int64))
contexts = st.integers(1, 24)
counts = st.integers(1, 5)


def scored(plan: Plan) -> Counter:
    """How often each (document, target) counts."""
    p = plan.pieces
    return Counter((d, t) for d, o, n, s in zip(p.document, p.offset, p.length, p.skip) for t in range(o + s, o + n))


def everything(lengths) -> Counter:
    return Counter((d, t) for d, n in enumerate(lengths) for t in range(n))


def row_contents(plan: Plan) -> list[list[int]]:
    return [plan.pieces.length[a:b].tolist() for a, b in pairwise(plan.first)]


def check_layout(plan: Plan, rows: int) -> None:
    filled = row_contents(plan)
    assert len(filled) == plan.batches * rows
    assert all(sum(row) <= plan.context for row in filled)
    assert all(length > 0 for row in filled for length in row)
    for b, pure in enumerate(plan.pure):
        batch = filled[b * rows : (b + 1) * rows]
        assert any(batch)
        if pure:  # such a batch gets no mask
            assert all(row in ([plan.context], []) for row in batch)


@settings(max_examples=150, deadline=None)
@given(documents, contexts, counts, st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_target_once(lengths, context, rows, seed, epoch):
    plan = plan_rows(lengths, context, rows, seed, epoch)
    assert scored(plan) == everything(lengths)
    assert plan.tokens == lengths.sum()
    check_layout(plan, rows)
    again = plan_rows(lengths, context, rows, seed, epoch)
    assert np.array_equal(plan.pieces.offset, again.pieces.offset)
    assert np.array_equal(plan.first, again.first)


@settings(max_examples=100, deadline=None)
@given(documents, contexts)
def test_documents_are_not_cut_more_than_they_must_be(lengths, context):
    pieces = cut(lengths, context, np.random.default_rng(0))
    assert np.array_equal(np.bincount(pieces.document, minlength=len(lengths)), -(-lengths // context))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=80).map(np.array), st.integers(30, 60))
def test_packing_is_best_fit_decreasing(lengths, context):
    lengths = lengths.astype(np.int64)
    order, first = pack(lengths, context)
    assert sorted(order) == list(range(len(lengths)))
    rooms: list[int] = []  # the textbook algorithm, one item at a time
    for n in sorted(lengths.tolist(), reverse=True):
        fitting = [r for r in rooms if r >= n]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else context) - n)
    left = [context - int(lengths[order[a:b]].sum()) for a, b in pairwise(first)]
    assert sorted(left) == sorted(rooms)


def test_little_is_padding_on_real_lengths():
    lengths = np.random.default_rng(0).lognormal(6.5, 1.0, 20000).astype(int) + 1
    plan = plan_rows(lengths, 1024, 16, 0, 0)
    assert plan.tokens / (plan.batches * 16 * 1024) > 0.99


def test_epochs_differ_in_order_and_cuts():
    lengths = np.full(50, 130)
    first, second = (plan_rows(lengths, 32, 4, 0, epoch) for epoch in (0, 1))
    assert not np.array_equal(first.pieces.document, second.pieces.document)
    cuts = [set(zip(p.pieces.document, p.pieces.offset)) for p in (first, second)]
    assert cuts[0] != cuts[1]


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(2, 24), counts, st.data())
def test_evaluation_scores_every_target_once_with_enough_context(lengths, context, rows, data):
    stride = data.draw(st.none() | st.integers(1, context))
    plan = plan_evaluation(lengths, context, rows, stride)
    assert scored(plan) == everything(lengths)
    check_layout(plan, rows)
    p = plan.pieces
    before = np.minimum(p.offset + p.skip, context - (stride or context))  # as much as the document has
    assert (p.skip >= before).all()


def test_a_prefix_of_the_evaluation_is_a_fair_sample():
    lengths = np.concatenate([np.full(400, 64), np.full(400, 10)])
    plan = plan_evaluation(lengths, 64, 8)
    kinds = plan.pure[: plan.batches // 4]
    assert abs(kinds.mean() - plan.pure.mean()) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=25), min_size=2, max_size=3),
    st.lists(st.floats(0.05, 20), min_size=3, max_size=3),
    st.integers(8, 64),
    st.integers(1, 8),
    st.integers(0, 2),
)
def test_shares_hold_to_a_thousandth_of_the_tokens(lists, weights, context, rows, epoch):
    sources = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
    lengths = np.concatenate(lists)
    weights = weights[: len(lists)]
    plan = plan_mixture(lengths, sources, weights, context, rows, 0, epoch)
    check_layout(plan, rows)
    tokens = np.bincount(sources[plan.pieces.document], plan.pieces.length, len(lists))
    wanted = np.array(weights) / sum(weights)
    assert np.abs(tokens / tokens.sum() - wanted).max() < 1e-3
    passes = np.bincount(plan.pieces.document, plan.pieces.length, len(lengths)) / lengths
    for s, own in enumerate(lists):  # a source repeats evenly; a tiny one in groups of passes
        together = -(-64 * context // sum(own))
        assert np.ptp(passes[sources == s]) <= 2 * together


def test_shares_hold_within_an_epoch_and_over_many():
    lengths = np.random.default_rng(0).integers(1, 900, 3000)
    sources = (np.arange(3000) < 300).astype(int)
    total = np.zeros(2)
    for epoch in range(3):
        plan = plan_mixture(lengths, sources, [0.7, 0.3], 128, 16, 5, epoch)
        per_batch = np.zeros((plan.batches, 2))
        row = np.repeat(np.arange(len(plan.first) - 1), np.diff(plan.first))
        np.add.at(per_batch, (row // 16, sources[plan.pieces.document]), plan.pieces.length)
        running = np.cumsum(per_batch, axis=0)
        shares = running[:, 1] / running.sum(axis=1)
        assert np.abs(shares[len(shares) // 10 :] - 0.3).max() < 0.01
        total += running[-1]
    assert total[1] / total.sum() == pytest.approx(0.3, abs=1e-3)


def test_over_epochs_a_weighted_source_loses_nothing():
    lengths, sources = np.array([5000] * 40 + [50] * 4), np.array([0] * 40 + [1] * 4)
    seen: Counter = Counter()
    for epoch in range(4):
        seen += scored(plan_mixture(lengths, sources, [0.5, 0.5], 64, 4, 0, epoch))
    big = [seen[d, t] for d in range(40) for t in range(5000)]
    assert max(big) - min(big) <= 1


def test_nothing_to_plan():
    assert plan_rows(np.empty(0, int), 8, 2, 0, 0).batches == 0
    assert plan_rows(np.zeros(3, int), 8, 2, 0, 0).batches == 0
    assert plan_evaluation(np.empty(0, int), 8, 2).batches == 0
    with pytest.raises(ValueError, match="stride"):
        plan_evaluation(np.array([5]), 8, 2, 9)


def test_a_source_without_tokens_has_no_share():
    plan = plan_mixture(np.array([100, 0]), np.array([0, 1]), [1.0, 1.0], 16, 2, 0, 0)
    assert set(plan.pieces.document) == {0}
