"""`onefold words`: what it prints, what it writes, and that a mistake is one line."""

import pytest
from typer.testing import CliRunner

from onefold.cli.words import app
from onefold.core.errors import UserError
from onefold.interop.words.word_vectors import load_vectors

GLOVE = "king 1 1 0\nqueen 1 -1 0.1\nman 0 1 0.2\nwoman 0 -1 0.2\napple -1 0 1\n"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "glove.txt").write_text(GLOVE)
    return tmp_path / "glove.txt"


def told(*arguments) -> list[list[str]]:
    """What is printed, by line and field."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return [line.split() for line in result.output.splitlines() if line.strip()]


def test_neighbours_of_several_words(file):
    lines = told("neighbours", file, "queen", "KING", "--count", 1)
    assert [line[0] for line in lines] == ["queen", "woman", "KING", "man"]
    assert float(lines[1][1]) == pytest.approx(load_vectors(file).similarity("queen", "woman"), abs=5e-4)
    assert told("neighbours", file, "king", "--limit", 2)[1:] == [["queen", "0.000"]]


def test_an_analogy(file):
    assert told("analogy", file, "king", "man", "woman", "-n", 1)[1][0] == "queen"


def test_evaluation_on_both_kinds_of_files(file, tmp_path):
    (tmp_path / "questions.txt").write_text(": royal\nman king woman queen\nman king cat dog\n")
    (tmp_path / "pairs.tsv").write_text("king\tman\t9\nking\tapple\t0\nman\twoman\t1\n")
    lines = told("evaluate", file, "--analogies", tmp_path / "questions.txt", "--pairs", tmp_path / "pairs.tsv")
    assert ["royal", "100.0%", "1", "1", "1"] in lines
    assert ["total", "100.0%", "1", "1", "1"] in lines
    assert lines[-1][0] == "3"
    with pytest.raises(UserError, match="--analogies FILE, --pairs FILE"):
        told("evaluate", file)


@pytest.mark.parametrize("format", ["word2vec", "text", "glove", "onefold"])
def test_conversion_and_back(file, tmp_path, format):
    told("convert", file, tmp_path / "out", "--format", format)
    assert (load_vectors(tmp_path / "out").matrix == load_vectors(file).matrix).all()


def test_mistakes(file, tmp_path):
    with pytest.raises(UserError, match="did you mean queen"):
        told("neighbours", file, "quen")
    with pytest.raises(UserError, match="no format named 'gensim'"):
        told("convert", file, tmp_path / "out", "--format", "gensim")
    assert not (tmp_path / "out").exists()
