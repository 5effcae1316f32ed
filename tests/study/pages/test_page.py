"""The report in a real browser: fits a phone, has no request and no complaint, switches axes, follows the theme."""

import shutil
from pathlib import Path

import pytest

from onefold.study.pages.report import write_report

from ..conftest import lay_chain

pytestmark = pytest.mark.slow
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=binary, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(lay_chain(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.fixture
def visit(browser, report):
    """`visit(width=…, theme=…)` opens the report; nothing but it was asked for in the end, and nothing went wrong."""
    tabs, requests, complaints = [], [], []

    def go(width: int = 1100, theme: str = "light"):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(report.as_uri())
        tabs.append(tab)
        return tab

    yield go
    for tab in tabs:
        tab.close()
    assert set(requests) == {report.as_uri()}
    assert complaints == []


@pytest.mark.parametrize("width", [340, 390, 700, 1100])
def test_nothing_sticks_out_at_the_side(visit, width):
    tab = visit(width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    label = tab.locator(".chart:visible text").first
    assert label.bounding_box()["height"] > 8  # legible: drawings are not shrunk to fit


def test_the_loss_by_step_is_a_click_away(visit):
    tab = visit()
    panels = tab.locator("#curve-1 .panel")
    assert [panels.nth(i).is_visible() for i in range(2)] == [True, False]
    tab.get_by_text("by step").first.click()
    assert [panels.nth(i).is_visible() for i in range(2)] == [False, True]


def test_it_follows_the_theme(visit):
    light, dark = (visit(theme=theme) for theme in ("light", "dark"))
    for place, style in (("body", "backgroundColor"), (".chart text", "fill"), (".ours .bar i", "backgroundColor")):
        read = f"getComputedStyle(document.querySelector('{place}')).{style}"
        assert light.evaluate(read) != dark.evaluate(read)


def test_bars_are_as_long_as_their_numbers(visit):
    tab = visit()
    rows = [row.inner_text().split() for row in tab.locator(".bars tbody .n:nth-child(3)").all()]
    lengths = [bar.bounding_box()["width"] for bar in tab.locator(".bars .bar i").all()]
    values = [float(row[0]) for row in rows]
    assert len(values) == 5
    assert [length / lengths[0] for length in lengths] == pytest.approx([v / values[0] for v in values], rel=0.02)
