"""An evaluation shared by several processes: each makes its own rows only, and together they make all of them once."""

import pytest
import torch

from onefold.data.images import ImageData
from onefold.data.loader import Evaluation


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ImageData(path="digits").prepare(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [14, 13, 11, 9])
def test_each_row_is_made_once_and_all_processes_get_as_many_batches(world, count):
    """Batches of 4 rows and a last one of 2, 1, 3 and 1: fewer than there are processes, or not to be shared evenly."""
    made = []

    def gather(plan, rows):
        made.append(rows)
        return plan[rows]

    whole = list(Evaluation(list(range(count)), gather, count, 4))
    made.clear()
    shares = [list(Evaluation(list(range(count)), gather, count, 4).share(rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    assert all(rows for share in shares for rows, _ in share)
    for batch, *parts in zip(whole, *shares):
        assert [row for rows, counts in parts if counts for row in rows] == batch
    empty = sum(not counts for share in shares for _, counts in share)
    assert sum(rows.stop - rows.start for rows in made) == count + empty


def test_pictures_of_other_processes_are_not_decoded(digits):
    whole = torch.cat([batch.rows_of for batch in digits.evaluation("held_out", 50)])
    mine = [batch for batch, _ in digits.evaluation("held_out", 50).share(1, 2)]
    assert len(mine) == len(digits.evaluation("held_out", 50))
    assert max(batch.rows for batch in mine) == 25
    assert 2 * sum(batch.rows for batch in mine) == pytest.approx(len(whole), abs=1)
