"""What a drawing must keep: its spikes, its labels apart, its text as text."""

import itertools
import re

import numpy as np
import pytest

from onefold.study.pages.charts import GAP, POINTS, Axis, Curve, Level, _apart, draw, smooth, thin
from onefold.study.pages.curves import window


def test_thinning_keeps_ends_and_spikes():
    x = np.arange(10_000.0)
    y = np.sin(x / 500)
    y[4321] = 99
    few, heights = thin(x, y)
    assert len(few) <= POINTS
    assert heights.max() == 99
    assert (few[0], few[-1]) == (0, 9999)
    assert np.all(np.diff(few) > 0)


def test_smoothing_keeps_constants_and_lines_and_calms_noise():
    line = np.linspace(5, 1, 500)
    assert smooth(np.full(50, 3.0), 5) == pytest.approx(3)
    assert smooth(line, 8)[50:-50] == pytest.approx(line[50:-50])
    noisy = line + np.random.default_rng(0).normal(0, 1, 500)
    assert np.std(smooth(noisy, 8) - line) < 0.35


@pytest.mark.parametrize("wanted", [[10.0], [10, 11, 12, 100], [0, 50, 51, 64, 65, 66], [100, 100, 100]])
def test_labels_are_moved_apart_and_not_swapped(wanted):
    places = _apart(wanted, 300)
    assert all(b - a >= GAP - 1e-9 for a, b in itertools.pairwise(places))
    assert max(abs(place - want) for place, want in zip(places, wanted)) <= GAP * len(wanted)


def test_text_stays_text_and_the_drawing_small():
    x = np.arange(1, 5000.0)
    svg = draw([Curve(x, 1 / x, label="a<b & $c$")], Axis("steps"), Axis("loss"), [Level("xz", 0.5)], title='<"x">')
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "a&lt;b &amp; $c$" in texts
    assert "xz 0.5" in texts
    assert "steps" in texts
    assert len(svg) < 30_000
    assert 'aria-label="&lt;&#34;x&#34;&gt;"' in svg


def test_two_drawings_share_no_identifiers():
    x = np.arange(1, 50.0)
    one, two = (draw([Curve(x, y, style="dots")], Axis("a"), Axis("b")) for y in (x, -x))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_the_loss_axis_shows_the_late_part_and_the_near_baselines():
    x = np.arange(200.0)
    curve = Curve(x, 1.4 + 6 * np.exp(-x / 10))
    low, high = window([curve], [Level("bigram", 3.5), Level("5-gram", 1.75), Level("primed xz", 1.27)])
    assert low < 1.27
    assert 1.75 < high < 3.5


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.72), (0.9, 1.4), (2e-3, 9e-3)])
def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks(low, high):
    x = np.arange(1, 4.0)
    svg = draw(
        [Curve(x, np.geomspace(low, high, 3))], Axis(), Axis("", low, high, log=True, text=lambda v: f"tick {v}")
    )
    assert 3 <= svg.count("tick ") <= 8


@pytest.mark.parametrize("y", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e-9, 1e9, 1.0]])
def test_degenerate_curves_are_drawn(y):
    for log in (False, True):
        if min(y) > 0 or not log:
            assert "<path" in draw([Curve(np.arange(1, 4.0), np.array(y))], Axis("x"), Axis("y", log=log))
