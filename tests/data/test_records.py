import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.core.errors import UserError
from onefold.data.records import Column, Records, RecordsDamaged, RecordsWriter

COLUMNS = {
    "id": Column("int64"),
    "name": Column("text"),
    "tokens": Column("uint16", ragged=True),
    "image": Column("uint8", (2, 3)),
}


def record(i: int) -> dict:
    generator = np.random.default_rng(i)
    return {
        "id": i,
        "name": "é🙂" * (i % 4),
        "tokens": generator.integers(0, 65536, i % 7),
        "image": generator.integers(0, 255, (2, 3)),
    }


def write(path, ids, **options):
    with RecordsWriter(path, COLUMNS, **options) as out:
        for i in ids:
            out.add(**record(i))


def check(path, ids):
    records = Records(path)
    assert len(records) == len(ids)
    for place, i in enumerate(ids):
        expected = record(i)
        assert records["id"][place] == i
        assert records["name"][place] == expected["name"]
        assert np.array_equal(records["tokens"][place], expected["tokens"])
        assert np.array_equal(records["image"][place], expected["image"])
    return records


@pytest.mark.parametrize("sizes", [{}, {"chunk_bytes": 100}, {"chunk_bytes": 100, "shard_bytes": 2000}])
def test_what_is_written_is_read(tmp_path, sizes):
    write(tmp_path, range(40), **sizes)
    check(tmp_path, range(40))
    assert len(list(tmp_path.glob("*.arrow"))) == (1 if "shard_bytes" not in sizes else pytest.approx(8, abs=6))


def test_appending_continues_the_store(tmp_path):
    write(tmp_path, range(10))
    write(tmp_path, range(10, 25), append=True)
    check(tmp_path, range(25))
    with pytest.raises(UserError, match="other columns"), RecordsWriter(tmp_path, {"id": Column("int8")}, append=True):
        pass
    check(tmp_path, range(25))


def append_until_error(path):
    with RecordsWriter(path, COLUMNS, append=True, chunk_bytes=10) as out:
        out.add(**record(3))
        raise OSError("no more")


def test_a_failed_append_changes_nothing(tmp_path):
    write(tmp_path, range(10))
    with pytest.raises(OSError, match="no more"):
        append_until_error(tmp_path)
    check(tmp_path, range(10))
    write(tmp_path, range(10, 12), append=True)
    check(tmp_path, range(12))


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    write(tmp_path, range(10))
    (tmp_path / "00001.arrow").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        write(tmp_path, range(10, 5000), append=True, chunk_bytes=1000)
    check(tmp_path, range(10))


def test_an_empty_store(tmp_path):
    write(tmp_path, [])
    records = check(tmp_path, [])
    assert records.ragged("tokens").gather(np.empty(0, int), np.empty(0, int)).shape == (0,)
    assert records.strided("image").gather(np.empty(0, int)).shape == (0, 2, 3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gathering_is_indexing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("records")
    ids = data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=30))
    write(path, ids, chunk_bytes=data.draw(st.sampled_from([1, 60, 10_000])), shard_bytes=500)
    records = Records(path)
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=20)), int)
    assert np.array_equal(records.strided("id").gather(rows), np.array(ids)[rows])
    tokens = records.ragged("tokens")
    wanted = []
    starts, lengths = [], []
    for row in rows:
        whole = record(ids[row])["tokens"]
        begin = data.draw(st.integers(0, len(whole)))
        length = data.draw(st.integers(0, len(whole) - begin))
        wanted += whole[begin : begin + length].tolist()
        starts.append(tokens.starts[row] + begin)
        lengths.append(length)
    assert tokens.gather(np.array(starts, int), np.array(lengths, int)).tolist() == wanted


def test_other_tools_read_it(tmp_path):
    write(tmp_path, range(9))
    table = pa.ipc.open_file(tmp_path / "00000.arrow").read_all().to_pylist()
    assert [row["id"] for row in table] == list(range(9))
    assert table[5]["name"] == record(5)["name"]
    assert table[5]["tokens"] == record(5)["tokens"].tolist()


def test_columns_are_not_copied_into_memory(tmp_path):
    write(tmp_path, range(40))
    before = pa.total_allocated_bytes()
    records = Records(tmp_path)
    assert pa.total_allocated_bytes() - before < 1000
    assert not records.ragged("tokens")._chunks[0].flags.owndata


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "index", "no index"])
def test_a_damaged_file_is_named(tmp_path, damage):
    write(tmp_path, range(40), chunk_bytes=100, shard_bytes=2000)
    file = tmp_path / "00001.arrow"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "index":
        file = tmp_path / "records.json"
        file.write_text(file.read_text()[:-20])
    else:
        file = tmp_path / "records.json"
        file.unlink()
    with pytest.raises(RecordsDamaged, match=file.name):
        Records(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    write(tmp_path, range(2))
    index = tmp_path / "records.json"
    index.write_text(index.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="newer"):
        Records(tmp_path)
