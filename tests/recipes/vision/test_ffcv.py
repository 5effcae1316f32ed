"""What the check of ffcv asserts, and its race in small."""

from functools import partial

import pytest

from onefold.recipes.vision import _feeding as feeding
from onefold.recipes.vision import ffcv
from onefold.study.check import Report


@pytest.mark.parametrize(
    "question",
    [
        ffcv.processes_share_an_epoch,
        ffcv.nothing_stays_behind,
        partial(ffcv.positions_are_exact, seeds=[1]),
        ffcv.threads_do_not_matter,
    ],
)
def test_what_the_check_asserts_holds(tmp_path, question):
    report = Report("ffcv")
    question(report, tmp_path)
    assert report.rows
    assert report.passed, report.rows


def test_orders_are_those_that_are_promised():
    report = Report("ffcv")
    ffcv.orders_are_random_and_repeatable(report)
    assert len(report.rows) == 9
    assert report.passed


def test_the_check_notices_a_loader_that_stays(tmp_path):
    kept = ffcv._augmented(tmp_path).loader("train", 32, 0)
    next(kept)
    report = Report("ffcv")
    ffcv.nothing_stays_behind(report, tmp_path)
    assert not report.passed
    kept.close()


@pytest.mark.filterwarnings("ignore")  # of processes that are forked beside threads
@pytest.mark.parametrize("task", ["tokens", "small", "jpeg", "raw"])
def test_both_sides_of_the_race_read_as_many_items_of_one_shape(tmp_path, task):
    feed = feeding.Feed(task, tmp_path, 200)
    feed.write()

    def shapes(batches):
        first = [getattr(b, "tokens", getattr(b, "images", b)) for b in batches()]
        return sum(len(b[0]) if isinstance(b, list) else len(b) for b in first), first[0]

    loader = feeding.DataLoader(feed.items(), feed.rows)
    (theirs, one), (ours, other) = shapes(lambda: loader), shapes(feed.onefold())
    one = one[0] if isinstance(one, list) else one
    assert theirs == 200
    assert ours == -(-200 // feed.rows) * feed.rows  # the last batch is filled up
    assert one.dtype == other.dtype
    assert sorted(one.shape[1:]) == sorted(other.shape[1:])


@pytest.mark.filterwarnings("ignore")
def test_the_race_is_reported_for_every_round(tmp_path):
    report = Report("ffcv")
    ffcv.speeds(report, tmp_path, {"tokens": 200})
    assert [row.seeds for row in report.rows] == [ffcv.ROUNDS] * 3
    assert report.passed
