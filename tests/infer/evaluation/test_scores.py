"""Figures are those of the libraries that the field uses; intervals hold the truth about as often as they say."""

import numpy as np
import pytest

from onefold.infer.evaluation import scores
from onefold.infer.tags import spans

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-LOC"]
DRAWN = np.random.default_rng(0)


def figures(found):
    return {figure.name: figure for figure in found}


def test_accuracy_and_macro_f1():
    metrics = pytest.importorskip("sklearn.metrics")
    truth = DRAWN.integers(0, 4, 200)
    said = np.where(DRAWN.random(200) < 0.6, truth, DRAWN.integers(0, 5, 200))
    found = figures(scores.of_classes(said, truth, 6))
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["macro F1"].value == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    for figure in found.values():
        assert 0 < figure.low < figure.value < figure.high < 1
        assert 0.1 < figure.high - figure.low < 0.2


def test_entities_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    truth = [[NAMES[i] for i in DRAWN.integers(0, len(NAMES), n)] for n in DRAWN.integers(1, 30, 60)]
    said = [[t if DRAWN.random() < 0.8 else NAMES[DRAWN.integers(len(NAMES))] for t in row] for row in truth]
    found = figures(scores.of_tags(said, truth, True))
    for name, oracle in (
        ("entity F1", seqeval.f1_score),
        ("entity precision", seqeval.precision_score),
        ("entity recall", seqeval.recall_score),
        ("accuracy of words", seqeval.accuracy_score),
    ):
        assert found[name].value == pytest.approx(oracle(truth, said)), name
        assert found[name].low < found[name].value < found[name].high


def test_entities_by_hand():
    assert spans(["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER"]) == [
        ("PER", 0, 1),
        ("LOC", 3, 3),
        ("LOC", 4, 4),
        ("PER", 5, 5),
    ]
    assert spans(["I-PER", "E-PER", "I-PER", "S-LOC", "I-LOC"]) == [
        ("PER", 0, 1),
        ("PER", 2, 2),
        ("LOC", 3, 3),
        ("LOC", 4, 4),
    ]
    assert spans(["O", "x", "x", "y"]) == [("x", 1, 2), ("y", 3, 3)]
    assert list(figures(scores.of_tags([["O"]], [["O"]], True))) == [
        "entity F1",
        "entity precision",
        "entity recall",
        "accuracy of words",
    ]


def test_answers_are_compared_as_squad_does():
    assert scores.normalised("The  Eiffel-Tower, (a) landmark!") == "eiffeltower landmark"
    assert scores.word_f1("in the Paris", "Paris") == pytest.approx(2 / 3)
    found = figures(
        scores.of_answers(
            ["The Paris", "nineteen", "", "something", "in Paris"],
            [["Paris", "Lyon"], ["1889", "in nineteen hundred"], [], [], ["Paris"]],
        )
    )
    assert found["exact match"].value == pytest.approx(2 / 5)
    assert found["F1"].value == pytest.approx((1 + 0.5 + 1 + 0 + 2 / 3) / 5)


def test_correlations():
    stats = pytest.importorskip("scipy.stats")
    metrics = pytest.importorskip("sklearn.metrics")
    truth = DRAWN.normal(size=80).round(1)  # with ties
    said = truth + DRAWN.normal(size=80).round(1)
    found = figures(scores.of_numbers(said, truth))
    assert found["Pearson"].value == pytest.approx(stats.pearsonr(said, truth).statistic)
    assert found["Spearman"].value == pytest.approx(stats.spearmanr(said, truth).statistic)
    assert found["R²"].value == pytest.approx(metrics.r2_score(truth, said))
    assert str(found["Pearson"]).startswith("Pearson 0.")
    assert np.isnan(figures(scores.of_numbers([1.0, 1.0], [1.0, 2.0]))["Pearson"].value)


def test_wilson():
    stats = pytest.importorskip("scipy.stats")
    for right, count in ((0, 10), (10, 10), (37, 80)):
        ours = scores.share("accuracy", right, count)
        theirs = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_resampling_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        sample = np.random.default_rng(seed).exponential(size=60)
        figure = scores.resampled("mean", lambda rows, sample=sample: float(sample[rows].mean()), 60, seed=seed)
        covered += figure.low < 1 < figure.high
    assert 85 <= covered <= 99
