"""Files of word vectors: bytes as the tools write them, both ways, and what is wrong with a file named by its line."""

import gzip
import struct

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.interop.words import word_vectors
from onefold.interop.words.word_vectors import load_vectors, save_vectors
from onefold.models.words.word_vectors import WordVectors

ROWS = {"the": [0.25, -1.5, 3], "</s>": [1e-7, 2, 0.1], "naïve": [5, 6, -7], "5": [0, 0, 1]}
TEXT = b"4 3\nthe 0.25 -1.5 3\n</s> 1e-07 2 0.1 \nna\xc3\xafve 5 6 -7\n5 0 0 1\n"
BINARY = b"4 3\n" + b"".join(w.encode() + b" " + struct.pack("<3f", *v) for w, v in ROWS.items())
WITH_NEWLINES = b"4 3\n" + b"".join(w.encode() + b" " + struct.pack("<3f", *v) + b"\n" for w, v in ROWS.items())
GLOVE = TEXT.partition(b"\n")[2]


@pytest.fixture
def vectors():
    return WordVectors(list(ROWS), np.array(list(ROWS.values()), np.float32))


def written(tmp_path, data, name="vectors"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


@pytest.mark.parametrize("data", [TEXT, BINARY, WITH_NEWLINES, GLOVE, GLOVE.replace(b"\n", b"\r\n"), TEXT.strip()])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_the_tools_write_is_read(tmp_path, vectors, data, compressed):
    path = written(tmp_path, gzip.compress(data) if compressed else data, "v.gz" if compressed else "v")
    found = load_vectors(path)
    assert found.words == vectors.words
    assert (found.matrix == vectors.matrix).all()
    few = load_vectors(path, limit=2)
    assert (few.words, few.matrix.shape) == (vectors.words[:2], (2, 3))


@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz"])
@pytest.mark.parametrize("format", ["word2vec", "text", "glove"])
def test_written_and_read_back_bit_for_bit(tmp_path, format, name):
    random = np.random.default_rng(0).normal(size=(500, 9)).astype(np.float32) * 10.0 ** np.arange(-30, 6, 4)
    vectors = WordVectors([f"wörd{i}" for i in range(500)], random.astype(np.float32))
    save_vectors(vectors, tmp_path / name, format)
    found = load_vectors(tmp_path / name)
    assert found.words == vectors.words
    assert (found.matrix == vectors.matrix).all()


def test_the_bytes_are_those_of_the_tools(tmp_path, vectors):
    save_vectors(vectors, tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == WITH_NEWLINES
    exact = WordVectors(["a", "b"], np.array([[0.25, -1.5], [2, 3]], np.float32))
    save_vectors(exact, tmp_path / "v", "text")
    assert (tmp_path / "v").read_bytes() == b"2 2\na 0.25 -1.5\nb 2 3\n"
    save_vectors(exact, tmp_path / "v", "glove")
    assert (tmp_path / "v").read_bytes() == b"a 0.25 -1.5\nb 2 3\n"


def test_our_folder(tmp_path, vectors):
    save_vectors(vectors, tmp_path / "v", "onefold")
    found = load_vectors(tmp_path / "v")
    assert found.words == vectors.words
    assert (found.matrix == vectors.matrix).all()
    data = bytearray((tmp_path / "v" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "v" / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_vectors(tmp_path / "v")


@pytest.mark.parametrize("format", ["word2vec", "text", "glove"])
def test_gensim_reads_and_writes_the_same(tmp_path, vectors, format):
    keyed = pytest.importorskip("gensim.models").KeyedVectors
    save_vectors(vectors, tmp_path / "ours", format)
    options = {"binary": format == "word2vec", "no_header": format == "glove"}
    theirs = keyed.load_word2vec_format(str(tmp_path / "ours"), **options)
    assert theirs.index_to_key == vectors.words
    assert (theirs.vectors == vectors.matrix).all()
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=options["binary"], write_header=format != "glove")
    found = load_vectors(tmp_path / "theirs")
    assert found.words == vectors.words
    assert (found.matrix == vectors.matrix).all()
    assert theirs.most_similar("the", topn=3) == [
        (word, pytest.approx(cosine, abs=1e-6)) for word, cosine in vectors.neighbours("the", 3)
    ]
    assert theirs.most_similar(positive=["the", "5"], negative=["</s>"], topn=1)[0][0] == "naïve"
    assert vectors.analogy("the", "</s>", "5", 1)[0][0] == "naïve"


def test_words_with_spaces_are_read_from_glove_and_left_out_of_word2vec(tmp_path, capsys):
    path = written(tmp_path, b"the 1 2\n. . . 3 4\nat name@domain.com 5 6\n")
    found = load_vectors(path)
    assert found.words == ["the", ". . .", "at name@domain.com"]
    save_vectors(found, tmp_path / "v", "text")
    assert load_vectors(tmp_path / "v").words == ["the"]
    assert "2 words" in capsys.readouterr().err


def test_a_word_that_comes_again_keeps_its_first_vector(tmp_path, capsys):
    found = load_vectors(written(tmp_path, b"3 1\na 1\na 2\nb 3\n"))
    assert (found.words, found.matrix[:, 0].tolist()) == (["a", "b"], [1, 3])
    assert "1 words came again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"2 3\na 1 2 3\nb 1 2\n", ":3: expected a word and 3 numbers, found 3 fields"),
        (b"2 3\na 1 2\nb 1 2 3\n", ":2: expected a word and 3 numbers, found 3 fields"),
        (b"2 3\na 1 2 3\nb 1 2 3 4\n", ":3: expected a word and 3 numbers, found 5 fields"),
        (b"a 1 2 3\nb 1 2\n", ":2: expected a word and 3 numbers"),
        (b"a 1 2 3\nb 1 2 3 4\n", ":2: expected a word and 3 numbers"),
        (b"a 1 2 3\nb 1 x 3\n", ":2: 'x' is not a number"),
        (b"a 1 2 3\nb 1 nan 3\n", ":2: the vector of 'b' has numbers that are not finite"),
        (b"3 2\na 1 2\nb 1 2\n", ":4: ends after 2 words; the first line says 3"),
        (b"1 2\na 1 2\nb 1 2\n", ":3: one word more than the 1 that"),
        (BINARY[:-3], "ends in word 4 of the 4"),
        (BINARY.replace(b"4 3", b"9 3"), "ends in word 5 of the 9"),
        (BINARY.replace(b"4 3", b"3 3"), "goes on after the 3 words of 3 numbers"),
        (b"2 2\n" + bytes(200_000), "makes no sense in word 1 of the 2"),
        (b"999999999999 60000\n\0\0", "ends in word 1 of the 999,999,999,999"),
        (b"5 0\n", ":1: vectors of 0 numbers"),
        (b"5 9999999999\nabc", ":1: vectors of 9999999999 numbers"),
        (b"just some text\n", ":1: neither word2vec's first line"),
        (b"\x89PNG\r\n\x1a\n", ":1: neither word2vec's first line"),
        (b"", ":1: neither word2vec's first line"),
        (b"0 5\n", "holds no words"),
        (b"x" * (word_vectors.LONGEST_LINE + 1), "longer than"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(tmp_path, data, message):
    with pytest.raises(UserError) as error:
        load_vectors(written(tmp_path, data, "broken"))
    assert message in str(error.value)
    assert "broken" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [gzip.compress(TEXT)[:-9], TEXT], ids=["cut off", "not compressed"])
def test_a_damaged_archive_is_told(tmp_path, data):
    with pytest.raises(UserError, match=r"v\.gz could not be read"):
        load_vectors(written(tmp_path, data, "v.gz"))


def test_places_without_vectors_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_vectors(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no word vectors"):
        load_vectors(tmp_path)
    with pytest.raises(UserError, match="no format named"):
        save_vectors(WordVectors(["a"], np.ones((1, 1), np.float32)), tmp_path / "v", "fasttext")
