"""The measures of early exit and drafts: texts of the small world, the χ² test, and what drafts should bring."""

from itertools import pairwise
from random import Random

import pytest
import torch
from scipy.stats import chisquare

from onefold.recipes.efficient._early_exit import NUMBERS, WORDS, apart, text, tokens_a_pass


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


def test_apart_is_pearsons_test_with_rare_classes_together():
    found, wanted = torch.tensor([30, 50, 17, 2, 1]), torch.tensor([0.3, 0.45, 0.2, 0.03, 0.02])
    expected = chisquare([30, 50, 17, 3], [30, 45, 20, 5]).pvalue
    assert apart(found, wanted) == pytest.approx(float(expected))


def test_tokens_a_pass_are_the_sum_of_what_stays():
    assert tokens_a_pass(0.6, 3) == pytest.approx(1 + 0.6 + 0.6**2 + 0.6**3)
    assert tokens_a_pass(1.0, 4) == 5
