"""Neighbours and analogies are what their formulas say, whatever the size of a block."""

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.infer.evaluation.word_vectors import evaluate_analogies, evaluate_pairs, spearman
from onefold.models.words import word_vectors
from onefold.models.words.word_vectors import WordVectors

ROYAL = {
    "king": [1, 1, 0],
    "queen": [1, -1, 0.1],
    "man": [0, 1, 0.2],
    "woman": [0, -1, 0.2],
    "apple": [-1, 0, 1],
    "pear": [-2, 0, 2.2],
}


@pytest.fixture
def royal():
    return WordVectors(list(ROYAL), np.array(list(ROYAL.values()), np.float32))


@pytest.fixture
def random(monkeypatch):
    monkeypatch.setattr(word_vectors, "BLOCK", 7)
    return WordVectors([f"w{i}" for i in range(40)], np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))


def test_neighbours_are_the_nearest_by_cosine(random):
    unit = random.matrix / np.linalg.norm(random.matrix, axis=1, keepdims=True)
    cosines = unit @ unit[3]
    expected = [i for i in np.argsort(-cosines) if i != 3][:6]
    found = random.neighbours("w3", 6)
    assert [word for word, _ in found] == [f"w{i}" for i in expected]
    assert [cosine for _, cosine in found] == pytest.approx(cosines[expected].tolist(), abs=1e-6)
    assert found[0][1] == pytest.approx(random.similarity("w3", found[0][0]), abs=1e-6)


def test_a_vector_has_neighbours_too_and_its_length_does_not_matter(random):
    found = random.neighbours(3 * random["w3"], 6)
    assert found[0] == ("w3", pytest.approx(1, abs=1e-6))
    assert found[1:] == [(w, pytest.approx(c, abs=1e-6)) for w, c in random.neighbours("w3", 5)]


def test_more_neighbours_than_words_are_all_of_them(royal):
    assert {word for word, _ in royal.neighbours("king", 99)} == set(ROYAL) - {"king"}


def test_an_analogy_leaves_out_what_was_asked(royal):
    assert royal.analogy("king", "man", "woman", 2)[0][0] == "queen"
    assert not {"king", "man", "woman"} & {word for word, _ in royal.analogy("king", "man", "woman", 99)}


def test_many_questions_are_answered_as_each_alone(random):
    rng = np.random.default_rng(1)
    asked = np.array([rng.choice(40, 3, replace=False) for _ in range(30)])
    a, b, c = (random.unit(asked[:, i]) for i in range(3))
    answers = random.nearest(b - a + c, asked)
    for (x, y, z), answer in zip(asked, answers):
        assert random.analogy(f"w{y}", f"w{x}", f"w{z}", 1)[0][0] == f"w{answer}"
    assert random.nearest(b - a + c, asked, among=9).max() < 9


def test_a_vector_of_zeros_harms_nobody():
    vectors = WordVectors(["nothing", "a", "b"], np.array([[0, 0], [1, 0], [1, 1]], np.float32))
    assert vectors.neighbours("a", 1)[0][0] == "b"
    assert np.isfinite([c for _, c in vectors.neighbours("nothing")]).all()


def test_a_word_is_found_in_lower_case_and_an_unknown_one_names_others(royal):
    assert (royal["King"] == royal["king"]).all()
    assert "King" not in royal
    with pytest.raises(UserError, match="did you mean queen"):
        royal.neighbours("qeen")


def test_analogies_of_a_file_by_section(royal, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text(
        ": royal\nMan King Woman Queen\nking queen man woman\nman king cat dog\n: fruit\nking man apple pear\n"
    )
    found = evaluate_analogies(royal, file)
    assert [(s.name, s.asked, s.unknown) for s in found.sections] == [("royal", 2, 1), ("fruit", 1, 0)]
    assert found.sections[0].right == 2
    assert (found.total.asked, found.total.unknown) == (3, 1)
    assert evaluate_analogies(royal, file, among=4).total.unknown == 2
    file.write_text(": royal\nman king woman\n")
    with pytest.raises(UserError, match=r"questions\.txt:2: expected four words"):
        evaluate_analogies(royal, file)


@pytest.mark.parametrize("between", ["\t", ",", " "])
def test_pairs_with_ratings(royal, tmp_path, between):
    file = tmp_path / "pairs.csv"
    rows = [("Word 1", "Word 2", "Human"), ("apple", "pear", "9.5"), ("king", "man", "6"), ("man", "woman", "1.5")]
    file.write_text("\n".join(between.join(row) for row in [*rows, ("king", "emu", "3")]))
    found = evaluate_pairs(royal, file)
    assert (found.spearman, found.pairs, found.unknown) == (pytest.approx(1), 3, 1)
    file.write_text(between.join(rows[1]) + "\nking\n")
    with pytest.raises(UserError, match=r"pairs\.csv:2: expected two words and a rating"):
        evaluate_pairs(royal, file)


def test_rank_correlation_shares_ranks():
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: Pearson's of those by hand.
    assert spearman(np.array([1, 2, 2, 3.0]), np.array([1, 3, 2, 4.0])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
