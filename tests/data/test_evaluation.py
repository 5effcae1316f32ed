"""An evaluation shared by several processes: each makes its own rows only, and together they make all of them once."""

import pytest
import torch

from onefold.core.batch import ImageBatch
from onefold.data.loader import Evaluation
from onefold.data.pictures import batches as picture_batches
from onefold.data.pictures.batches import decoder
from onefold.data.pictures.images import ImageData
from onefold.data.records import Records
from tests.data.pictures.makers import class_folders


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [14, 13, 11, 9])
def test_each_row_is_made_once_and_all_processes_get_as_many_batches(world, count):
    """Batches of 4 rows and a last one of 2, 1, 3 and 1: fewer than there are processes, or not to be shared evenly."""
    made = []

    def gather(plan, rows):
        made.append(rows)
        return ImageBatch(images=torch.tensor(plan[rows]))

    whole = list(Evaluation(list(range(count)), gather, count, 4))
    made.clear()
    shares = [list(Evaluation(list(range(count)), gather, count, 4).share(rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    assert all(batch.rows for share in shares for batch in share)
    for batch, *parts in zip(whole, *shares):
        assert [row for part in parts if part.counted for row in part.images.tolist()] == batch.images.tolist()
    empty = sum(not batch.counted for share in shares for batch in share)
    assert sum(rows.stop - rows.start for rows in made) == count + empty


def test_pictures_of_other_processes_are_not_decoded(tmp_path, monkeypatch):
    root, decoded = class_folders(tmp_path / "a", each=30, size=(9, 9, 3)), []
    pictures = ImageData(path=str(root), held_out=0.5, raw_bytes=0).prepare(tmp_path / "prepared")
    cut = decoder()
    monkeypatch.setattr(picture_batches, "decoder", lambda: lambda *a: (decoded.append(a[1]), cut(*a))[1])
    names = Records(next((tmp_path / "prepared").iterdir()) / "held_out")["name"]
    together = set()
    for rank in range(2):
        decoded.clear()
        mine = list(pictures.evaluation("held_out", 8).share(rank, 2))
        assert len(mine) == 4
        rows = torch.cat([batch.rows_of for batch in mine]).tolist()
        assert sorted(decoded) == sorted(names[row] for row in rows)
        assert len(decoded) == 15
        together |= set(decoded)
    assert len(together) == 30
