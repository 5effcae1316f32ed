"""Text becomes a stream of numbered words: which words, how often, and where windows end."""

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.text import words
from onefold.data.text.words import END, Vocabulary, WordData, pieces


def prepared(tmp_path, text, **settings):
    """The corpus of a text, or of a document for each of several; its stream as words again, END as None."""
    folder = tmp_path / "text"
    folder.mkdir(exist_ok=True)
    for n, part in enumerate([text] if isinstance(text, str) else text):
        (folder / f"{n}.txt").write_text(part)
    data = WordData.from_dict({"sources": str(folder), "min_count": 1} | settings)
    corpus = data.prepare(tmp_path / "data")
    return corpus, [None if i == END else corpus.vocabulary.words[i] for i in corpus.stream]


def test_words_are_counted_and_the_most_frequent_come_first(tmp_path):
    corpus, stream = prepared(tmp_path, ["Don't panic! The panic, the Panic.", "new_york the 42"])
    assert corpus.vocabulary.words == ["panic", "the", "42", "don't", "new_york"]
    assert corpus.vocabulary.counts.tolist() == [3, 3, 1, 1, 1]
    assert stream == ["don't", "panic", "the", "panic", "the", "panic", None, "new_york", "the", "42", None]
    assert (corpus.facts["words"], corpus.facts["documents"]) == (9, 2)


def test_rare_words_are_left_out_before_windows_are_laid(tmp_path):
    assert prepared(tmp_path, "a b a c a b", min_count=2)[1] == ["a", "b", "a", "a", "b", None]
    assert prepared(tmp_path, "a b a c a b", vocab=1)[1] == ["a", "a", "a", None]
    with pytest.raises(UserError, match="no word occurs 9 times"):
        prepared(tmp_path, "a b a c", min_count=9)


def test_words_can_be_what_spaces_part_in_the_case_that_they_have(tmp_path):
    assert prepared(tmp_path, "Is it , e.g. ?", split="space", lower=False)[1] == ["Is", "it", ",", "e.g.", "?", None]


def test_a_window_can_end_with_its_line(tmp_path):
    assert prepared(tmp_path, "a b\n\nc", ends="line")[1] == ["a", "b", None, None, "c", None]


def test_long_texts_are_taken_apart_between_words(tmp_path, monkeypatch):
    whole = prepared(tmp_path, "the cat sat on the mat " * 50)[1]
    monkeypatch.setattr(words, "PIECE", 10)
    assert all(len(piece) < 20 for piece in pieces("the cat sat on the mat " * 50))
    assert "".join(pieces("the cat  sat on")) == "the cat  sat on"
    (tmp_path / "again").mkdir()
    assert prepared(tmp_path / "again", "the cat sat on the mat " * 50)[1] == whole


def test_counting_forgets_the_rarest_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "DISTINCT", 20)
    texts = ["often " * 30] + [" ".join(f"rare{n}_{i}" for i in range(15)) for n in range(4)] + ["often " * 30]
    corpus, _ = prepared(tmp_path, texts)
    assert corpus.vocabulary.words == ["often"]
    assert corpus.vocabulary.counts.tolist() == [60]


def test_what_was_prepared_is_found_again_and_follows_its_source(tmp_path, capsys):
    first, _ = prepared(tmp_path, "a b")
    capsys.readouterr()
    again = WordData.from_dict({"sources": str(tmp_path / "text"), "min_count": 1}).prepare(tmp_path / "data")
    assert again.facts == first.facts
    assert "different ones" not in capsys.readouterr().err
    assert prepared(tmp_path, "a b c")[0].facts["hash"] != first.facts["hash"]


def test_a_vocabulary_is_saved_as_the_tools_do(tmp_path):
    vocabulary = Vocabulary(["the", "naïve"], np.array([7, 2]))
    vocabulary.save(tmp_path)
    assert (tmp_path / "words.txt").read_text() == "the 7\nnaïve 2\n"
    assert Vocabulary.load(tmp_path).words == vocabulary.words


def test_weights_are_refused():
    with pytest.raises(UserError, match="leave out the weight"):
        WordData.from_dict({"sources": [{"path": "x", "weight": 2}]})
