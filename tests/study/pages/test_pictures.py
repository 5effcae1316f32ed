"""Pictures in a report: the right ones, in files that others read, in HTML that cannot be talked into anything."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from onefold.infer.classify import Predictions
from onefold.study.pages.pictures import (
    SIDE,
    URI,
    best_answers,
    overlay,
    picture_results,
    picture_sections,
    png_uri,
    worst_mistakes,
)
from onefold.study.pages.report import write_report
from onefold.study.results import plain, write_results
from tests.objectives.small_pictures import SmallClassifier, picture_batch


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith(URI)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(URI)))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_a_page_has_the_very_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, channels), dtype=np.uint8)
    found = decoded(png_uri(torch.tensor(pixels).permute(2, 0, 1)))
    assert np.array_equal(found.reshape(9, 13, channels), pixels)


def test_large_pictures_are_made_small():
    assert decoded(png_uri(torch.zeros(3, 400, 200, dtype=torch.uint8))).shape == (SIDE, SIDE // 2, 3)


def test_heat_shows_where_it_is_largest():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 1.0
    found = overlay(torch.full((1, 16, 16), 100, dtype=torch.uint8), heat).float()
    assert found.shape == (3, 16, 16)
    assert found[0, 0, 0] > found[0, -1, -1] + 50
    flat = overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((2, 2), 7.0))
    assert (flat == flat[:, :1, :1]).all()


def said() -> Predictions:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]])
    return Predictions(probabilities, torch.tensor([0, 1, 1, 1, 1, 0]), torch.arange(6))


def test_mistakes_are_the_most_certain_ones_and_answers_one_a_class():
    assert worst_mistakes(said(), 5) == [2, 1]
    assert worst_mistakes(said(), 1) == [2]
    assert best_answers(said(), 5) == [0, 3]
    assert best_answers(said(), 1) == [0]


def results(rows: int = 30) -> dict:
    batch = picture_batch(rows)
    return picture_results(SmallClassifier(), batch.split(7), [f"<{i}>" for i in range(10)], mistakes=4)


def test_results_are_plain_values_about_the_right_pictures():
    found, batch = results(), picture_batch(30)
    assert plain(json.loads(json.dumps(found))) == found
    assert sum(count for _, _, count in found["confusion"]) == 30
    assert len(found["mistakes"]) == 4
    for shot in found["mistakes"]:
        row = shot["row"]
        assert np.array_equal(decoded(shot["picture"]), batch.images[row].permute(1, 2, 0).numpy())
        assert shot["truth"] == f"<{int(batch.targets[row].argmax())}>" != shot["guess"]
    for shot in found["looks"]:
        assert shot["truth"] == shot["guess"]


def test_sections_show_all_of_it_and_escape_names():
    found = results()
    html = picture_sections(json.loads(json.dumps(found)))
    assert html.count("<img") == 2 * (len(found["mistakes"]) + len(found["looks"]))
    for heading in ("What it takes for what", "Its worst mistakes", "Where it looks"):
        assert heading in html
    assert "<3>" not in html
    assert "of 30 pictures" in html.lower()


def test_a_report_has_them(make_run, undrawn):
    run = make_run()
    write_results(run, pictures=results())
    html = write_report(run).read_text()
    assert html.count('<section id="confusion">') == html.count('<section id="mistakes">') == 1
    assert html.count("<img") > 4
    assert html.index("Its worst mistakes") < html.index('id="inside"')


def test_only_pictures_of_the_page_itself_are_shown():
    found = results()
    found["mistakes"][0]["picture"] = "https://example.org/spy.png"
    found["mistakes"][1]["map"] = 'data:text/html,"><script>alert(1)</script>'
    html = picture_sections(found)
    assert "example.org" not in html
    assert "script" not in html
    assert html.count("<img") == 2 * (len(found["mistakes"]) - 2 + len(found["looks"]))


def test_a_model_that_is_always_right_has_no_mistakes_to_show():
    found = results() | {"mistakes": [], "confusion": [[i, i, 3] for i in range(10)], "accuracy": 1.0}
    html = picture_sections(found)
    assert "worst mistakes" not in html
    assert "100.0%" in html
