"""The matrix counted by hand, and a drawing that says what it shows."""

import re

import numpy as np
import pytest
import torch

from onefold.infer.classify import Predictions
from onefold.study.pages.confusion import (
    DRAWN,
    confused,
    confusion_chart,
    confusion_matrix,
    confusion_table,
    counts,
    from_counts,
    precision,
    recall,
)

TRUTH, GUESSES = [0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 0, 2, 1, 1]
MATRIX = np.array([[2, 1, 0, 0], [1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]])


def predictions() -> Predictions:
    return Predictions(torch.eye(4)[GUESSES], torch.tensor(TRUTH), torch.arange(8))


def test_rows_are_what_it_is_and_columns_what_was_said():
    assert np.array_equal(confusion_matrix(predictions()), MATRIX)
    assert confusion_matrix(predictions()).trace() / 8 == predictions().accuracy
    assert np.array_equal(from_counts(counts(MATRIX), 4), MATRIX)


def test_recall_and_precision_of_each_class():
    assert recall(MATRIX) == pytest.approx([2 / 3, 1 / 2, 1 / 3, np.nan], nan_ok=True)
    assert precision(MATRIX) == pytest.approx([2 / 3, 1 / 4, 1, np.nan], nan_ok=True)


def test_the_most_frequent_mistakes_come_first():
    assert confused(MATRIX) == [(2, 1, 2), (0, 1, 1), (1, 0, 1)]
    assert confused(MATRIX, most=1) == [(2, 1, 2)]
    assert confused(np.diag([3, 4])) == []
    table = confusion_table(MATRIX, ["cat", "dog", "<fox>", "owl"])
    assert "<fox>" not in table
    assert re.search(r"&lt;fox&gt;</th><td>dog</td><td class=\"n\">2</td><td class=\"n\">67%", table)
    assert confusion_table(np.diag([3, 4]), ["a", "b"]) == ""


def squares(svg: str) -> dict[str, float]:
    """Title of a square → how dark it is."""
    found = re.findall(r'<g><title>([^<]*)</title><rect[^>]*fill-opacity="([\d.]+)"', svg)
    return {title: float(opacity) for title, opacity in found}


def test_a_square_is_as_dark_as_its_share_of_the_class():
    chart = confusion_chart(MATRIX, ["cat", "dog", "<fox>", "owl"])
    found = squares(chart.wide)
    assert len(found) == 6  # nothing is drawn where nothing happened
    assert found["&lt;fox&gt; taken for dog: 2 of 3"] > found["&lt;fox&gt; taken for &lt;fox&gt;: 1 of 3"]
    assert found["cat taken for cat: 2 of 3"] == pytest.approx(0.08 + 0.92 * 2 / 3, abs=0.01)
    assert re.findall(r"<text[^>]*>(\w+)</text>", chart.wide).count("owl") == 2
    assert "<fox>" not in chart.wide


def test_of_many_classes_those_with_mistakes_are_drawn():
    matrix = np.diag(np.full(1000, 5))
    matrix[7, 900] = 3
    chart = confusion_chart(matrix, [f"class number {i} of a thousand" for i in range(1000)])
    assert "class number 7 of a thousand taken for class number 900 of a thousand: 3 of 8" in squares(chart.wide)
    assert len(squares(chart.wide)) == DRAWN + 1
    assert f"the {DRAWN} classes with the most mistakes of 1,000" in chart.note
    assert len(chart.wide) < 40_000


def test_without_pictures_nothing_is_drawn():
    assert confusion_chart(np.zeros((3, 3), np.int64), ["a", "b", "c"]) is None
