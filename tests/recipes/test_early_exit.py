"""The measures of early exit and drafts: texts of the small world, the χ² test, and what drafts should bring."""

from itertools import pairwise
from random import Random

import pytest
import torch
from markupsafe import Markup
from scipy.stats import chisquare

from onefold.recipes.efficient import _early_exit
from onefold.recipes.efficient._early_exit import NUMBERS, WORDS, apart, text, tokens_a_pass
from onefold.study.check import Report


def test_texts_follow_their_rule_but_for_one_number_in_ten():
    kept = of = 0
    for seed in range(40):
        said = text(Random(seed))
        numbers = [ord(letter) - ord("A") for letter in said[::5]]
        assert all(said[5 * i + 1 : 5 * i + 5] == WORDS[n % 3] for i, n in enumerate(numbers))
        rule = [(3 * a + b + 1) % NUMBERS for a, b in pairwise(numbers)]
        kept += sum(x == y for x, y in zip(rule, numbers[2:]))
        of += len(numbers) - 2
    assert 0.87 < kept / of < 0.96


def test_models_without_a_threshold_fail_the_check_and_nothing_is_told_of_them(monkeypatch, tmp_path):
    rule = _early_exit._rule(0.5)
    found = {"sure": _early_exit.Seen(rule, lost=0.02, layers=3.0, easy=2.0, hard=4.0), "unsure": None}
    monkeypatch.setattr(_early_exit, "_seen", found.get)
    monkeypatch.setattr(_early_exit, "_tradeoff", lambda model, seen: Markup(f"<svg>{model}</svg>"))
    report = Report("early exit", charts=tmp_path)
    _early_exit.left_early(report, ["unsure", "sure", "unsure"])
    rows = {row.name: row for row in report.rows}
    assert not report.passed
    assert rows["models for which a threshold was found, of all seeds"].value == "1"
    assert rows["lost to leaving early on fresh texts, calibrated"].value == "0.02"
    assert "sure" in next(tmp_path.glob("*.svg")).read_text()
    report = Report("early exit", charts=tmp_path)
    _early_exit.left_early(report, ["unsure"] * 3)
    assert [row.passed for row in report.rows] == [False]


def test_apart_is_pearsons_test_with_rare_classes_together():
    found, wanted = torch.tensor([30, 50, 17, 2, 1]), torch.tensor([0.3, 0.45, 0.2, 0.03, 0.02])
    expected = chisquare([30, 50, 17, 3], [30, 45, 20, 5]).pvalue
    assert apart(found, wanted) == pytest.approx(float(expected))


def test_tokens_a_pass_are_the_sum_of_what_stays():
    assert tokens_a_pass(0.6, 3) == pytest.approx(1 + 0.6 + 0.6**2 + 0.6**3)
    assert tokens_a_pass(1.0, 4) == 5
