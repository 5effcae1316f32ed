"""What the checks of word2vec and glove assert on small corpora, and that it would be noticed were it otherwise."""

import numpy as np
import pytest

pytest.importorskip("numba")

from onefold import recipes
from onefold.recipes.words import _words as questions
from onefold.study.check import Report
from onefold.training.words import skipgram
from onefold.training.words.run import WordRun

QUESTIONS = {
    questions.steps_follow_the_gradient: 2,
    questions.draws_follow_their_distribution: 2,
    questions.finds_shifted_mutual_information: 2,
    questions.counts_are_those_of_the_definition: 4,
    questions.glove_is_its_formula: 3,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_the_checks_assert_holds(question):
    report = Report("words")
    question(report)
    assert len(report.rows) == QUESTIONS[question]
    assert report.passed, report.rows


@pytest.mark.parametrize(("name", "width", "window"), [("word2vec", 300, 5), ("glove", 300, 10)])
def test_a_recipe_round_trips(name, width, window):
    for tiny in (False, True):
        run = recipes.resolve(name, {"seed": 3}, tiny)
        assert WordRun.from_json(run.to_json()) == run
    assert (recipes.resolve(name).model.width, recipes.resolve(name).model.window) == (width, window)


def test_negatives_drawn_otherwise_would_be_noticed(monkeypatch):
    table = skipgram.alias_table
    monkeypatch.setattr(skipgram, "alias_table", lambda weights: table(np.sqrt(weights)))
    report = Report("words")
    questions.finds_shifted_mutual_information(report)
    assert not report.passed
