"""Power laws of loss over compute: the exact one is found, the interval covers as often as it says."""

import math
import re

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.study.scaling import fit, power_of_ten, scaling_chart, student

BUDGETS = (1e10, 4e10, 1.6e11, 6.4e11)


def line(factor: float, exponent: float, noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    """Three seeds of each budget."""
    random = np.random.default_rng(seed)
    return [(c, factor * c**-exponent * math.exp(random.normal(0, noise))) for c in BUDGETS for _ in range(3)]


def test_an_exact_power_law_is_recovered():
    law = fit(line(30, 0.17)[::-1])
    assert law.factor == pytest.approx(30)
    assert law.exponent == pytest.approx(0.17)
    assert law.low == pytest.approx(law.high)
    assert law.loss(1e13) == pytest.approx(30 * 1e13**-0.17)
    assert fit([(c, 2.0) for c in BUDGETS]).exponent == pytest.approx(0)


def test_intervals_cover_as_often_as_they_say():
    laws = [fit(line(30, 0.17, noise=0.05, seed=seed)) for seed in range(600)]
    covered = np.mean([law.low < 0.17 < law.high for law in laws])
    assert covered == pytest.approx(0.95, abs=0.03)
    for compute in (3e10, 1e12):
        bands = [law.band(compute) for law in laws]
        assert np.mean([low < 30 * compute**-0.17 < high for low, high in bands]) == pytest.approx(0.95, abs=0.03)


def test_what_all_seeds_of_a_budget_share_widens_the_interval():
    bent = [(c, loss * (1.1 if c == BUDGETS[0] else 1)) for c, loss in line(30, 0.17) for _ in range(10)]
    few, many = fit(bent[::10]), fit(bent)
    assert many.high - many.low == pytest.approx(few.high - few.low)
    assert many.high - many.low > 0.05


@pytest.mark.parametrize(
    ("confidence", "free", "value"), [(0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 10, 2.22814), (0.99, 3, 5.84091)]
)
def test_students_t_is_that_of_the_tables(confidence, free, value):
    assert student(confidence, free) == pytest.approx(value, rel=1e-3)


def test_two_budgets_make_a_line_without_an_interval():
    law = fit([(1e10, 1.0), (1e12, 0.1)])
    assert law.exponent == pytest.approx(0.5)
    assert (law.low, law.high) == (-math.inf, math.inf)
    assert "<path" in scaling_chart({"two": [(1e10, 1.0), (1e12, 0.1)]})


@pytest.mark.parametrize("points", [[], [(1e10, 1.0)], [(1e10, 1.0), (1e10, 1.1)]])
def test_fewer_than_two_budgets_are_refused(points):
    with pytest.raises(UserError, match="two amounts of compute"):
        fit(points)


@pytest.mark.parametrize("bad", [(1e10, math.nan), (0.0, 1.0), (1e10, -1.0)])
def test_points_that_have_no_logarithm_are_refused(bad):
    with pytest.raises(UserError, match="positive numbers"):
        fit([(1e9, 1.0), bad])


def test_the_chart_names_every_series_with_its_exponent():
    svg = scaling_chart({"NFNet": line(30, 0.17, 0.02), "ViT": line(50, 0.2, 0.02)})
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {text for text in texts if "∝" in text} == {"NFNet ∝ C^−0.17", "ViT ∝ C^−0.20"}
    assert "10¹¹" in texts
    assert "held-out loss, nats" in texts


def test_powers_of_ten_are_read_as_such():
    assert [power_of_ten(value) for value in (1e10, 2e10, 1.25e9, 5e-3, 1.0)] == [
        *("10¹⁰", "2·10¹⁰", "1.25·10⁹", "5·10⁻³", "10⁰")
    ]
