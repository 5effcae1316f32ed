import re
import xml.etree.ElementTree as ET

import numpy as np

from onefold.study.pages.charts import standalone
from onefold.study.pages.contacts import contact_chart, contact_table


def example():
    generator = np.random.default_rng(0)
    scores = generator.random((20, 20))
    touch = np.zeros((20, 20), bool)
    touch[0, 10] = touch[10, 0] = touch[3, 4] = touch[4, 3] = True
    scores[0, 10], scores[2, 15] = 2.0, 1.9
    known = np.ones(20, bool)
    known[15] = False
    return scores, touch, known


def squares(svg, color):
    group = re.search(rf'<g fill="var\(--{color}\)">(.*?)</g>', svg)
    return re.findall(r'x="([\d.]+)" y="([\d.]+)"', group[1]) if group else []


def test_predictions_lie_above_the_diagonal_and_contacts_below():
    scores, touch, known = example()
    svg = str(contact_chart(scores, touch, known, "a < b"))
    ET.fromstring(standalone(contact_chart(scores, touch, known, "a < b")))
    cell = 480 / 20
    assert squares(svg, "accent") == [(f"{10 * cell:.2f}", "0.00")]  # the only one of the surest that touches
    surest = sum(len(squares(svg, color)) for color in ("accent", "series-2", "series-3"))
    assert surest == 20
    assert (f"{15 * cell:.2f}", f"{2 * cell:.2f}") in squares(svg, "series-3")  # nobody knows
    assert all(float(x) > float(y) for color in ("series-2", "muted") for x, y in squares(svg, color))
    assert {(float(x), float(y)) for x, y in squares(svg, "ink")} == {(0, 10 * cell), (3 * cell, 4 * cell)}


def test_a_table_has_every_pair_the_surest_first():
    scores, touch, known = example()
    scores[1, 19] = np.nan
    lines = contact_table(scores, "ACDEFGHIKLMNPQRSTVWY", touch, known).splitlines()
    assert lines[:3] == ["first,second,residues,score,contact", "1,11,AM,2.0000,1", "3,16,DS,1.9000,"]
    assert lines[-1] == "2,20,CY,,0"
    assert len(lines) == 1 + 14 * 15 // 2
