import gzip

import pytest

from onefold.core.errors import UserError
from onefold.data.proteins.fasta import read_fasta
from onefold.data.sources import Skipped, read


def chains(text):
    return list(read_fasta(text.splitlines(keepends=True), "some.fasta"))


def test_lines_of_a_chain_are_joined_whatever_ends_them():
    text = "\ufeff>sp|P1|ONE first\r\nMKV\r\n\r\nla g\n; an old comment\n>two\nACD*\n>none\n>last\nXBUZO.-J"
    assert [(c.name, c.line, c.sequence) for c in chains(text)] == [
        ("sp|P1|ONE first", 1, "MKVLAG"),
        ("two", 6, "ACD"),
        ("none", 8, ""),
        ("last", 9, "XBUZO.-X"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (">a\nMKV\nMK1\n", r"some\.fasta:3: '1' is no amino acid"),
        (">a\nMK*V\n", r"some\.fasta:2: a \* within"),
        (">a\nMK*\nV\n", r"some\.fasta:2: a \* within"),
        ("MKV\n", r"some\.fasta:1: a FASTA file begins"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text, told):
    with pytest.raises(UserError, match=told):
        chains(text)


def test_fasta_is_a_source_of_documents_also_compressed(tmp_path):
    with gzip.open(tmp_path / "all.fasta.gz", "wt") as file:
        file.write(">a\nMK\nV\n>b\n>c\nAC\n")
    skipped = Skipped()
    assert [(d.name, d.text) for d in read(tmp_path, skipped=skipped)] == [
        ("all.fasta.gz:1", "MKV"),
        ("all.fasta.gz:5", "AC"),
    ]
    assert skipped.empty == 1


def test_a_file_is_read_as_it_is_asked_for():
    endless = (line for _ in iter(int, 1) for line in (">a\n", "MKV\n"))
    found = read_fasta(endless, "endless")
    assert [next(found).sequence for _ in range(3)] == ["MKV"] * 3
