import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefold.data.order import BUFFER_PAGES, order, plan_epoch

KINDS = ("sequential", "pages", "random")


@given(st.integers(0, 3000), st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5), st.integers(1, 70))
def test_every_row_comes_once_and_always_in_the_same_place(count, kind, seed, epoch, page_rows):
    found = order(count, kind, seed, epoch, page_rows)
    assert sorted(found) == list(range(count))
    assert np.array_equal(found, order(count, kind, seed, epoch, page_rows))


@pytest.mark.parametrize("kind", ["pages", "random"])
def test_seeds_and_epochs_differ(kind):
    orders = [order(1000, kind, s, e, 10).tobytes() for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9


def test_pages_are_read_a_few_at_a_time_and_mixed():
    page_rows, pages = 8, 4 * BUFFER_PAGES
    found = order(page_rows * pages, "pages", page_rows=page_rows) // page_rows
    stretches = found.reshape(4, -1)
    touched = [set(stretch.tolist()) for stretch in stretches]
    assert all(len(t) == BUFFER_PAGES for t in touched)  # no other page is needed meanwhile
    assert not touched[0] & touched[1]
    assert max(touched[0]) - min(touched[0]) > BUFFER_PAGES  # pages from all over the file
    assert (np.diff(stretches[0]) == 0).mean() < 0.1  # neighbours lie apart


@given(st.integers(1, 200), st.integers(1, 64))
def test_an_epoch_fills_its_last_batch_from_its_beginning(count, rows):
    epoch = plan_epoch(count, rows, "random", 3, 5)
    assert len(epoch.order) == epoch.batches * rows
    assert 0 <= len(epoch.order) - count < rows
    assert sorted(epoch.order[:count]) == list(range(count))
    assert np.array_equal(epoch.order[count:], np.resize(epoch.order[:count], len(epoch.order) - count))


def test_nothing_makes_no_batches():
    assert plan_epoch(0, 8).batches == 0
