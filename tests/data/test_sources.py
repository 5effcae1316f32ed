import gzip
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onefold.core.errors import UserError
from onefold.data import sources
from onefold.data.sources import Document, Skipped, read, stamp


def texts(path, **options):
    return {d.name: d.text for d in read(path, skipped=Skipped(), **options)}


def test_a_folder_is_read_in_order_without_what_is_no_text(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.md").write_text("eins", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes("naïve\r\n".encode())
    (tmp_path / "latin.txt").write_bytes("a café in the rue, naturally".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("héllo".encode("utf-16"))
    (tmp_path / "real.txt").write_text("a real \ufffd stays", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    (tmp_path / "noise.bin").write_bytes(bytes(range(128, 255)) * 4)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "table.parquet").write_bytes(b"")  # looks like records, is none
    os.remove(tmp_path / "table.parquet")
    (tmp_path / "rows.jsonl").write_text('{"other": 1}\n')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / ".hidden").write_text("x")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    found = list(read(tmp_path))
    assert [d.name for d in found] == ["a.txt", "latin.txt", "real.txt", "wide.txt", "b/one.md"]
    assert found[0].text == "naïve\r\n"
    assert found[1].text == "a caf\ufffd in the rue, naturally"
    assert found[3].text.endswith("héllo")
    [line] = [x for x in capsys.readouterr().err.splitlines() if "left out" in x]
    assert "2 binary, 1 empty, 1 without text left out" in line
    assert "broken UTF-8 replaced by \ufffd in 1" in line


def test_jsonl_parquet_gzip(tmp_path):
    rows = [{"text": "first\nline", "id": 1}, {"text": "second é"}]
    lines = "\n".join(json.dumps(r) for r in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.ndjson").write_text('"a bare string"\n')
    pq.write_table(pa.table({"text": ["p", None, "", "q"], "body": ["1", "2", "3", "4"]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert texts(tmp_path) == {
        "a.jsonl:1": "first\nline",
        "a.jsonl:2": "second é",
        "b.jsonl.gz:1": "first\nline",
        "b.jsonl.gz:2": "second é",
        "c.ndjson:1": "a bare string",
        "d.parquet:1": "p",
        "d.parquet:4": "q",
        "e.txt.gz": "packed",
    }
    assert texts(tmp_path / "d.parquet", field="body")["d.parquet:2"] == "2"


def test_a_dataset_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(1500)], "n": list(range(1500))})
    test = datasets.Dataset.from_dict({"text": ["not me"], "n": [0]})
    train.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"test": test, "train": train}).save_to_disk(str(tmp_path / "several"))
    assert list(texts(tmp_path / "one").values()) == train["text"]
    assert list(texts(tmp_path / "several").values()) == train["text"]
    assert list(texts(tmp_path / "several" / "test").values()) == ["not me"]
    with pytest.raises(UserError, match=r"'story' \(it has text, n\)"):
        texts(tmp_path / "one", field="story")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"body": "x", "id": 3}\n', r"a\.jsonl:1: no text in 'text' \(it has body, id\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', r"a\.jsonl:2: no text"),
        ("a.parquet", b"PAR1 nonsense", r"a\.parquet is not a readable Parquet file"),
        ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], r"a\.txt\.gz could not be read"),
        ("a.txt", b"", r"a\.txt holds no text \(1 empty left out\)"),
        ("a.txt", b"\0\1\2", r"a\.txt holds no text \(1 binary left out\)"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read(tmp_path / name))


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="empty folder"):
        list(read(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        list(read(tmp_path / "missing"))
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"holds no text \(1 binary left out\)"):
        list(read(tmp_path))


def test_a_long_file_is_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 100)
    text = "".join(f"line {i} é\n" for i in range(60)) + "x" * 250 + "\nend"
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    found = list(read(tmp_path))
    assert "".join(d.text for d in found) == text
    assert len(found) > 5
    assert all(len(d.text.encode()) <= 350 for d in found)
    assert found[1] == Document("long.txt#2", found[1].text)
    assert found[0].text.endswith("\n")


def test_the_standard_library_is_there_without_its_tests():
    found = list(read("stdlib", skipped=Skipped()))
    names = {d.name for d in found}
    assert {"json/decoder.py", "asyncio/tasks.py"} <= names
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(n.split("/")[:-1]) for n in names)
    assert all(n.endswith(".py") for n in names)
    if sys.version_info[:2] == (3, 11):
        assert 600 < len(found) < 900
        assert 10e6 < sum(len(d.text) for d in found) < 14e6


def test_the_stamp_notices_changes(tmp_path):
    assert stamp(tmp_path / "missing") is None
    (tmp_path / "a.txt").write_text("x")
    first = stamp(tmp_path)
    assert stamp(tmp_path) == first
    (tmp_path / "b.txt").write_text("y")
    second = stamp(tmp_path)
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    assert len({first, second, stamp(tmp_path)}) == 3
