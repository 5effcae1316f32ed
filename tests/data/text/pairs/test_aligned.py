"""Pairs of texts as users have them: two aligned files, tables; and what is said when they are not aligned."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onefold.core.errors import UserError
from onefold.data.text.pairs.aligned import Count, read_pairs
from onefold.data.text.pairs.synthetic import pairs


def read(*path, source=None, target=None):
    count = Count()
    return [(p.source, p.target) for p in read_pairs([str(p) for p in path], source, target, count)], count.empty


def test_aligned_files_with_empty_lines_and_odd_separators(tmp_path):
    (tmp_path / "a.de").write_bytes("\ufeffeins\r\n zwei\u2028drei \n\nvier\n".encode())
    with gzip.open(tmp_path / "a.en.gz", "wb") as file:
        file.write(b"one\n two\x0bthree\nfive\n\n")
    found, empty = read(tmp_path / "a.de", tmp_path / "a.en.gz")
    assert found == [("eins", "one"), ("zwei\u2028drei", "two\x0bthree")]
    assert empty == 2


def test_misaligned_files_are_named_with_counts_and_the_first_line_without_a_partner(tmp_path):
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei\nvier\n")
    (tmp_path / "a.en").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"a.de has 4 lines, .*a.en 2: .*a\.de:3 \('drei'\)"):
        read(tmp_path / "a.de", tmp_path / "a.en")
    with pytest.raises(UserError, match=r"a.de has 4 lines, .*a.en 2"):
        read(tmp_path / "a.en", tmp_path / "a.de")
    with pytest.raises(UserError, match=r"could not read .*a.fr: No such file"):
        read(tmp_path / "a.de", tmp_path / "a.fr")
    with pytest.raises(UserError, match="not in 3 files"):
        read(*[tmp_path / "a.de"] * 3)


def test_tables_by_usual_names_by_given_ones_and_nested(tmp_path):
    rows = [("eins", "one"), ("zwei", "two")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in rows))
    (tmp_path / "t.tsv").write_text("de\ten\n" + "".join(f"{s}\t{t}\n" for s, t in rows))
    pq.write_table(pa.table({"translation": [{"de": s, "en": t} for s, t in rows]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.jsonl") == (rows, 0)
    assert read(tmp_path / "t.tsv", source="de", target="en") == (rows, 0)
    assert read(tmp_path / "t.parquet", source="en", target="de") == ([(t, s) for s, t in rows], 0)
    for file, said in (("t.tsv", "which column holds the source"), ("t.parquet", "which languages")):
        with pytest.raises(UserError, match=said):
            read(tmp_path / file)
    (tmp_path / "bad.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "a", "target": 3}\n')
    with pytest.raises(UserError, match=r"bad.jsonl:2: a pair is two texts"):
        read(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="is no table"):
        read(tmp_path / "text.txt")


def test_synthetic_pairs_are_the_same_every_time_and_hardly_ever_twice():
    found = list(pairs(300))
    assert found == list(pairs(300))
    assert list(pairs(40)) == found[:40] != list(pairs(40, seed=1))
    assert len(set(found)) > 295
    words = dict(pair for pair in found if pair[0] == found[0][0])
    assert len(words) == 1
