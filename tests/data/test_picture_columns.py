import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.records import Column, Records, RecordsWriter


def pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_raw(path, values, **options):
    with RecordsWriter(path, picture_columns(shape=values.shape[1:]), **options) as out:
        for value in values:
            out.add(image=value)
    return Records(path).pictures("image")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gathering_raw_pixels_is_indexing_whatever_the_pages(tmp_path_factory, data):
    shape = data.draw(st.sampled_from([(3, 4, 1), (40, 40, 3), (2, 5, 5, 3), (6, 7)]))
    values = pixels(data.draw(st.integers(1, 40)), *shape)
    page = data.draw(st.sampled_from([1, 20_000, 1 << 20]))
    view = write_raw(tmp_path_factory.mktemp("raw"), values, chunk_bytes=page, shard_bytes=50_000)
    rows = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=30)), int)
    assert np.array_equal(view.gather(rows), values[rows])
    out = np.empty((len(rows), *shape), np.uint8)
    assert view.gather(np.sort(rows), out) is out
    assert np.array_equal(out, values[np.sort(rows)])


def test_a_place_outside_and_a_wrong_out_are_refused(tmp_path):
    view = write_raw(tmp_path, pixels(5, 3, 3, 1))
    for rows in ([5], [-1], [0, 99]):
        with pytest.raises(IndexError):
            view.gather(np.array(rows))
    for out in (
        np.empty((1, 3, 3, 3), np.uint8),
        np.empty((1, 3, 3, 1), np.int8),
        np.empty((1, 6, 3, 1), "u1")[:, ::2],
    ):
        with pytest.raises(ValueError, match="out is"):
            view.gather(np.array([0]), out)


@pytest.mark.parametrize(
    ("shape", "size", "frames"), [((5, 4, 3), (5, 4, 3), 1), ((7, 5, 4, 1), (5, 4, 1), 7), ((5, 4), (5, 4, 1), 1)]
)
def test_pictures_clips_and_masks_tell_their_size(tmp_path, shape, size, frames):
    view = write_raw(tmp_path, pixels(3, *shape))
    assert view.shape == shape
    assert view.sizes.dtype == np.int32
    assert view.sizes.tolist() == [list(size)] * 3
    assert view.frames(2) == frames
    with pytest.raises(TypeError, match="raw"):
        view.encoded(0)


def test_encoded_pictures_are_given_as_they_came_without_a_copy(tmp_path):
    files = [b"first", b"", b"\xff\xd8 third"]
    with RecordsWriter(tmp_path, picture_columns(), chunk_bytes=1) as out:
        for i, data in enumerate(files):
            out.add(**encoded_record("image", [data], (10 + i, 20, 3)))
    view = Records(tmp_path).pictures("image")
    before = pa.total_allocated_bytes()
    found = [view.encoded(row) for row in range(3)]
    assert [bytes(f) for f in found] == files
    assert all(f.readonly for f in found)
    assert pa.total_allocated_bytes() == before
    assert view.shape is None
    assert view.sizes.tolist() == [[10, 20, 3], [11, 20, 3], [12, 20, 3]]
    with pytest.raises(TypeError, match="encoded"):
        view.gather(np.array([0]))
    with pytest.raises(IndexError):
        view.encoded(0, frame=1)


def test_clips_are_frames_one_after_another(tmp_path):
    clips = [[b"one", b"two!", b""], [b"alone"], [bytes([i]) * i for i in range(1, 9)]]
    with RecordsWriter(tmp_path, picture_columns("clip", clip=True)) as out:
        for frames in clips:
            out.add(**encoded_record("clip", frames, (64, 64, 3), clip=True))
    view = Records(tmp_path).pictures("clip")
    assert [view.frames(row) for row in range(3)] == [3, 1, 8]
    assert [[bytes(view.encoded(r, f)) for f in range(view.frames(r))] for r in range(3)] == clips
    with pytest.raises(IndexError):
        view.encoded(1, 1)


def test_other_tools_read_them(tmp_path):
    values = pixels(4, 2, 3, 1)
    with RecordsWriter(tmp_path, picture_columns("a", (2, 3, 1)) | picture_columns("b")) as out:
        for value in values:
            out.add(a=value, **encoded_record("b", [b"data"], (9, 9, 1)))
    table = pa.ipc.open_file(tmp_path / "00000.arrow").read_all()
    assert table["a"].to_pylist() == values.reshape(4, -1).tolist()
    assert table["b"].to_pylist() == [b"data"] * 4
    assert table["b.size"].to_pylist() == [[9, 9, 1]] * 4


def test_stores_without_pictures_stay_readable_by_older_versions(tmp_path):
    for name, columns in (("text", {"id": Column("int8")}), ("picture", picture_columns(shape=(2, 2, 1)))):
        with RecordsWriter(tmp_path / name, columns):
            pass
    versions = {p.parent.name: json.loads(p.read_text())["version"] for p in tmp_path.glob("*/records.json")}
    assert versions == {"text": 1, "picture": 2}
    with pytest.raises(TypeError, match="no column of pictures"):
        Records(tmp_path / "text").pictures("id")
