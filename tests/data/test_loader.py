import gc
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.core.errors import UserError
from onefold.data.loader import Loader
from onefold.data.records import Column, Records, RecordsWriter
from onefold.data.text.plan import plan_evaluation, plan_rows
from onefold.data.text.windows import gather

CONTEXT = 8
PAD = 9999


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Documents 0…29 of i·1.7 targets, token t of document d being 100·d + t."""
    path = tmp_path_factory.mktemp("records")
    with RecordsWriter(path, {"tokens": Column("uint16", ragged=True)}, chunk_bytes=300) as out:
        for d in range(30):
            out.add(tokens=100 * d + np.arange(int(d * 1.7) + 1))
    return Records(path).ragged("tokens")


def loader(tokens, rows=6, seed=0, **options):
    lengths = tokens.lengths - 1
    plan = partial(plan_rows, lengths, CONTEXT, rows, seed)
    return Loader(plan, partial(gather, tokens=tokens, pad=PAD), rows, **options)


def take(source, n):
    return [next(source) for _ in range(n)]


def same(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("tokens", "targets", "weights"))


def test_batches_say_what_follows_what_and_nothing_crosses_documents(tokens):
    with loader(tokens) as source:
        batches = take(source, 40)
    kinds = set()
    for batch in batches:
        kinds.add(batch.segments is None)
        assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (6, CONTEXT)
        real = batch.weights > 0
        assert torch.equal(batch.targets[real], batch.tokens[real] + 1)
        assert (batch.tokens[~real] == PAD).all()
        positions = torch.arange(CONTEXT).expand(6, -1) if batch.positions is None else batch.positions
        segments = torch.zeros(6, CONTEXT, dtype=torch.long) if batch.segments is None else batch.segments
        for row in range(6):
            for s in segments[row].unique():
                mine = (segments[row] == s).nonzero()[:, 0]
                assert torch.equal(positions[row, mine], torch.arange(len(mine)))
                assert torch.equal(mine, torch.arange(mine[0], mine[-1] + 1))  # in one stretch
                own = batch.tokens[row, mine][real[row, mine]]
                assert len(own) in (0, len(mine))  # padding is no part of a document's segment
                assert len((own // 100).unique()) <= 1
                assert torch.equal(own, own[:1] + torch.arange(len(own)))
    assert kinds == {True, False}


def test_an_epoch_reads_every_target_once(tokens):
    with loader(tokens) as source:
        seen = []
        while source.state()["epoch"] == 0:
            batch = next(source)
            seen += batch.targets[batch.weights > 0].tolist()
    assert sorted(seen) == sorted(100 * d + t for d in range(30) for t in range(1, int(d * 1.7) + 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.sampled_from([(1, 1), (1, 2), (2, 3), (3, 1)]), st.integers(0, 2))
def test_resuming_anywhere_with_another_number_of_processes_goes_on_exactly(tokens, after, worlds, seed):
    before_world, after_world = worlds
    sources = [loader(tokens, seed=seed, rank=r, world=before_world) for r in range(before_world)]
    for source in sources:
        take(source, after)
    states = [s.state() for s in sources]
    assert all(state == states[0] for state in states)
    assert set(states[0]) == {"epoch", "seen"}
    for source in sources:
        source.close()
    with loader(tokens, seed=seed) as whole:
        expected = take(whole, after + 12)[after:]
    resumed = [loader(tokens, seed=seed, rank=r, world=after_world, state=states[0]) for r in range(after_world)]
    for batch in expected:
        parts = [next(r) for r in resumed]
        for name in ("tokens", "targets", "weights"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))
        assert len({p.segments is None for p in parts}) == 1  # all processes run the same code
    for source in resumed:
        source.close()


def test_what_was_fetched_ahead_does_not_count(tokens):
    with loader(tokens) as source:
        take(source, 3)
        time.sleep(0.2)  # the thread fills the queue
        assert source.state() == {"epoch": 0, "seen": 18}


def test_full_rows_are_gathered_as_all_others_are(tmp_path):
    """The short cut for rows of one piece makes what the tables for mixed rows make."""
    with RecordsWriter(tmp_path, {n: Column("uint16", ragged=True) for n in ("tokens", "learned")}) as out:
        for d in range(9):
            out.add(tokens=100 * d + np.arange(40), learned=np.ones(40))
    records = Records(tmp_path)
    tokens, learned = records.ragged("tokens"), records.ragged("learned")
    plan = plan_rows(tokens.lengths - 1, CONTEXT, 4, 0, 0)
    assert plan.pure.any()
    for batch in np.flatnonzero(plan.pure).tolist():
        rows = slice(4 * batch, 4 * batch + 4)
        short, long = gather(plan, rows, tokens, PAD), gather(plan, rows, tokens, PAD, learned)
        assert same(short, long)
        assert [t.dtype for t in (short.tokens, short.targets, short.weights)] == [
            t.dtype for t in (long.tokens, long.targets, long.weights)
        ]


def test_closing_and_going_on(tokens):
    with loader(tokens) as whole:
        expected = take(whole, 10)
    source = loader(tokens)
    got = take(source, 4)
    source.close()
    got += take(source, 6)
    source.close()
    assert all(map(same, got, expected))


def threads():
    return [t for t in threading.enumerate() if t.name == "onefold-loader"]


def test_no_thread_stays_behind(tokens):
    source = loader(tokens)
    take(source, 2)
    assert len(threads()) == 1
    source.close()
    assert not threads()
    dropped = loader(tokens)
    take(dropped, 2)
    del dropped
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not threads()


def test_an_error_in_the_thread_reaches_the_caller(tokens):
    def broken(epoch):
        raise OSError("disk gone")

    source = Loader(broken, partial(gather, tokens=tokens, pad=0), 2)
    with pytest.raises(OSError, match="disk gone"):
        next(source)
    assert not threads()


def test_wrong_sizes_are_explained(tokens):
    with pytest.raises(UserError, match="6 rows cannot be shared by 4"):
        loader(tokens, rank=0, world=4)
    with pytest.raises(UserError, match="another size"):
        loader(tokens, state={"epoch": 0, "seen": 7})
    empty = Loader(partial(plan_rows, np.zeros(2, int), 8, 2, 0), partial(gather, tokens=tokens, pad=0), 2)
    with pytest.raises(UserError, match="nothing to train on"):
        next(empty)


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
def test_evaluation_windows_weigh_every_target_once(tokens, stride):
    plan = plan_evaluation(tokens.lengths - 1, CONTEXT, 4, stride)
    seen = []
    for b in range(plan.batches):
        batch = gather(plan, slice(4 * b, 4 * b + 4), tokens, PAD)
        counted = batch.weights > 0
        seen += batch.targets[counted].tolist()
        assert torch.equal(batch.targets[counted], batch.tokens[counted] + 1)
    assert sorted(seen) == sorted(100 * d + t for d in range(30) for t in range(1, int(d * 1.7) + 1))
