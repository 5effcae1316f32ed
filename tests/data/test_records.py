import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.core.errors import UserError
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.records import Column, Records, RecordsDamaged, RecordsWriter, find_damage

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


def test_what_a_failed_append_wrote_is_removed_and_nothing_else(tmp_path):
    write(tmp_path, range(10))
    (tmp_path / "00001.arrow").write_bytes(b"whose is it?")
    with pytest.raises(OSError, match="no more"):
        append_until_error(tmp_path)
    assert sorted(f.name for f in tmp_path.glob("*.arrow")) == ["00000.arrow", "00001.arrow"]
    assert (tmp_path / "00001.arrow").read_bytes() == b"whose is it?"


def test_an_append_never_writes_onto_a_shard_that_is_there(tmp_path):
    """As where one was taken out of the index by hand, so that names and count no longer agree."""
    write(tmp_path, range(30), chunk_bytes=100, shard_bytes=600)
    index = json.loads((tmp_path / "records.json").read_text())
    index["shards"].pop(1)
    (tmp_path / "records.json").write_text(json.dumps(index))
    (tmp_path / "00001.arrow").unlink()
    before = {file: file.read_bytes() for file in tmp_path.glob("*.arrow")}
    left = len(Records(tmp_path))
    write(tmp_path, range(30, 40), append=True)
    assert {file: file.read_bytes() for file in before} == before
    assert Records(tmp_path)["id"][left] == 30
    assert find_damage(tmp_path) == []


def test_a_store_that_is_written_anew_leaves_nothing_of_the_old_one(tmp_path):
    write(tmp_path, range(10))
    write(tmp_path, range(20, 25))
    check(tmp_path, range(20, 25))
    assert len(list(tmp_path.glob("*.arrow"))) == 1


def test_reading_keeps_no_file_open(tmp_path):
    """However many shards there are: a process may have a thousand files open, a store many thousand shards."""
    write(tmp_path, range(60), chunk_bytes=1, shard_bytes=1)
    before = psutil.Process().num_fds()
    records = check(tmp_path, range(60))
    assert len(list(tmp_path.glob("*.arrow"))) == 60
    assert psutil.Process().num_fds() == before
    assert not records.strided("id")._chunks[0].flags.writeable


def test_what_cannot_be_opened_is_no_damage(tmp_path):
    write(tmp_path, range(10))
    records = Records(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=r"00000\.arrow cannot be read: .*Too many open files") as error:
            records["id"][0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(error.value, RecordsDamaged)
    assert records["id"][3] == 3


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch):
    write(tmp_path, range(10))
    file = pa.OSFile
    monkeypatch.setattr(pa, "OSFile", lambda path, mode: file("/dev/full", mode))
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


def test_long_ranges_are_copied_across_pages_and_shards(tmp_path):
    generator = np.random.default_rng(0)
    values = [generator.integers(0, 65536, n).astype(np.uint16) for n in (500, 0, 900, 300, 1, 700)]
    with RecordsWriter(tmp_path, {"tokens": Column("uint16", ragged=True)}, chunk_bytes=1000, shard_bytes=2000) as out:
        for value in values:
            out.add(tokens=value)
    tokens = Records(tmp_path).ragged("tokens")
    rows = np.array([5, 0, 2, 3, 1, 2])
    out = np.empty(sum(len(values[row]) for row in rows), np.uint16)
    assert tokens.gather(tokens.starts[rows], tokens.lengths[rows], out) is out
    assert np.array_equal(out, np.concatenate([values[row] for row in rows]))
    assert [tokens[row].tolist() for row in range(6)] == [v.tolist() for v in values]
    with pytest.raises(IndexError):
        tokens.gather(tokens.starts[-1:], tokens.lengths[-1:] + 1)
    with pytest.raises(ValueError, match="out is"):
        tokens.gather(tokens.starts[:1], tokens.lengths[:1], out)


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


def mapped(path):
    """Files of a store that this process has mapped into its memory."""
    found = {Path(file.path) for file in psutil.Process().memory_maps() if file.path.startswith(str(path))}
    return {file.name for file in found}


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="this system does not tell what is mapped")
def test_five_gigabytes_open_without_a_look_into_them(tmp_path):
    """256 shards of 20 MB, which are all one file under many names; a look into each page would take 300 MB."""
    with RecordsWriter(tmp_path, {"id": Column("int64"), **picture_columns("image")}, chunk_bytes=1 << 20) as out:
        for i in range(200):
            out.add(id=i, **encoded_record("image", [i.to_bytes(4) * 25_000], (200, 200, 3)))
    index = json.loads((tmp_path / "records.json").read_text())
    [shard] = index["shards"]
    index["shards"] = [shard | {"file": f"{n:05}.arrow"} for n in range(256)]
    for name in (s["file"] for s in index["shards"][1:]):
        os.link(tmp_path / "00000.arrow", tmp_path / name)
    (tmp_path / "records.json").write_text(json.dumps(index))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.arrow")) > 5e9
    Records(tmp_path)  # what only the first call costs
    process = psutil.Process()
    before = process.memory_info().rss
    records = Records(tmp_path)
    assert process.memory_info().rss - before < 4e6
    assert not mapped(tmp_path)
    assert len(records) == len(records.pages[:-1]) * 200 / len(shard["pages"]) == 256 * 200
    row = 200 * 77 + 13
    assert records["id"][row] == 13
    assert bytes(records.pictures().encoded(row)[:4]) == (13).to_bytes(4)
    assert mapped(tmp_path) == {"00077.arrow"}
    assert process.memory_info().rss - before < 8e6


def test_reading_does_not_wait_for_pandas(tmp_path):
    """pyarrow's own way to numpy imports it where it is installed: half a second at the first row."""
    write(tmp_path, range(10))
    code = (
        "import sys; from onefold.data.records import Records; r = Records(sys.argv[1]);"
        "print([r[name][3] for name in r.columns], r.ragged('tokens').starts, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" False\n")


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
        Records(tmp_path, verify=True)


def test_a_newer_format_is_refused(tmp_path):
    write(tmp_path, range(2))
    index = tmp_path / "records.json"
    index.write_text(index.read_text().replace('"version": 1', '"version": 3'))
    with pytest.raises(UserError, match="newer"):
        Records(tmp_path)


def test_the_damaged_page_is_named_with_its_rows(tmp_path):
    write(tmp_path, range(40), chunk_bytes=100, shard_bytes=2000)
    assert find_damage(tmp_path) == []
    index = json.loads((tmp_path / "records.json").read_text())
    shard = index["shards"][1]
    file = tmp_path / shard["file"]
    whole = file.read_bytes()
    rows, end, _ = shard["pages"][2]
    first = index["shards"][0]["rows"] + sum(r for r, _, _ in shard["pages"][:2])
    for place, told in ((end - 1, f"page 2 (rows {first} to {first + rows - 1})"), (len(whole) - 20, "outside")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        [problem] = find_damage(tmp_path)
        assert file.name in problem
        assert told in problem


def test_a_store_without_page_checksums_is_read_and_verified(tmp_path):
    write(tmp_path, range(10))
    index = json.loads((tmp_path / "records.json").read_text())
    del index["shards"][0]["pages"]
    (tmp_path / "records.json").write_text(json.dumps(index))
    check(tmp_path, range(10))
    assert find_damage(tmp_path) == []
    (tmp_path / "00000.arrow").write_bytes((tmp_path / "00000.arrow").read_bytes()[:-1] + b"X")
    [problem] = find_damage(tmp_path)
    assert "00000.arrow is damaged" in problem


@pytest.mark.parametrize("edit", [{"dtype": "void"}, {"dtype": 3}, {"shape": None}, {"colour": "red"}])
def test_an_index_that_makes_no_sense_is_damage(tmp_path, edit):
    write(tmp_path, range(2))
    index = json.loads((tmp_path / "records.json").read_text())
    index["columns"]["id"] |= edit
    (tmp_path / "records.json").write_text(json.dumps(index))
    with pytest.raises(RecordsDamaged, match=r"records\.json"):
        Records(tmp_path)


@pytest.mark.parametrize("rows", [[7], [1, 1], [7, 7]])
def test_an_index_of_other_files_is_damage(tmp_path, rows):
    """Told where it shows: when the store is opened, or else when the shard is."""
    write(tmp_path, range(2))
    index = json.loads((tmp_path / "records.json").read_text())
    index["shards"][0]["rows"] = 7 if rows == [7] else sum(rows)
    if len(rows) == 2:
        index["shards"][0]["pages"] = [[n, 100, 0] for n in rows]
    (tmp_path / "records.json").write_text(json.dumps(index))
    with pytest.raises(RecordsDamaged, match=r"00000\.arrow"):
        Records(tmp_path)["id"][1]


@pytest.mark.parametrize("pages", [3, [[1]], [["a", 1, 2]], None])
def test_pages_that_make_no_sense_are_damage(tmp_path, pages):
    write(tmp_path, range(2))
    index = json.loads((tmp_path / "records.json").read_text())
    index["shards"][0]["pages"] = pages
    (tmp_path / "records.json").write_text(json.dumps(index))
    with pytest.raises(RecordsDamaged, match=r"records\.json"):
        Records(tmp_path)


def test_a_shard_of_other_columns_is_damage_when_it_is_read(tmp_path):
    write(tmp_path / "a", range(3))
    with RecordsWriter(tmp_path / "b", {"id": Column("int64")}) as out:
        for i in range(3):
            out.add(id=i)
    shard = tmp_path / "b" / "00000.arrow"
    (tmp_path / "a" / "00000.arrow").write_bytes(shard.read_bytes())
    index = json.loads((tmp_path / "a" / "records.json").read_text())
    index["shards"][0]["bytes"] = shard.stat().st_size
    (tmp_path / "a" / "records.json").write_text(json.dumps(index))
    with pytest.raises(RecordsDamaged, match=r"00000\.arrow is damaged: it does not hold"):
        Records(tmp_path / "a")["id"][0]


@pytest.mark.parametrize("what", ["rewritten", "removed"])
def test_a_shard_that_changes_after_the_store_was_opened_is_never_mixed_in(tmp_path, what):
    write(tmp_path, range(30), chunk_bytes=100, shard_bytes=2000)
    records, other = Records(tmp_path), Records(tmp_path)
    assert other["id"][29] == 29
    for file in tmp_path.glob("*.arrow"):
        file.unlink()
    if what == "rewritten":
        write(tmp_path, range(30), chunk_bytes=100, shard_bytes=2000)
        for file in tmp_path.glob("*.arrow"):
            os.utime(file, ns=(1, 1))
    assert other["id"][29] == 29  # what was read from once is there until it is let go
    with pytest.raises(RecordsDamaged, match=r"arrow (was written anew|is missing)"):
        records["id"][29]


def test_threads_that_open_a_store_at_once_read_the_same(tmp_path):
    write(tmp_path, range(60), chunk_bytes=100, shard_bytes=2000)
    expected = [(i, record(i)["name"]) for i in range(60)]

    def both(records, i):
        return int(records["id"][i]), records["name"][i]

    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(partial(both, Records(tmp_path)), range(60))) == expected
