"""Rows of a check: what fails, what only reports, and what is published."""

import io
import math
import subprocess
from datetime import date
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from onefold.study.check import Report, run_check, run_checks, write_landmarks
from onefold.study.pages.charts import Axis, Curve, draw


def test_assertions_pass_and_fail():
    report = Report("x")
    assert report.equal("count", 7_241_732_096, 7_241_732_096)
    assert report.close("loss", 1.5, 1.52, 0.03)
    assert report.less("loss", 1.0, 1.1)
    assert report.passed
    assert report.status == 0
    assert not report.equal("count", 1, 2)
    assert not report.close("loss", 1.5, 1.52, 0.01)
    assert not report.close("loss", math.nan, 1.0, 9)
    assert not report.less("loss", 1.1, 1.1)
    assert not report.less("loss", math.nan, 1.1)
    assert report.status == 1
    assert [row.passed for row in report.rows] == [True] * 3 + [False] * 5


def test_seeds_are_averaged_and_their_spread_told():
    report = Report("x")
    assert report.less("loss", [1.0, 1.2, 1.4], np.array([1.3, 1.4, 1.5]))
    (row,) = report.rows
    assert (row.value, row.expected, row.seeds) == ("1.2", "< 1.4 ± 0.1", 3)
    assert row.spread == pytest.approx(0.2)
    report.note("bits", [1.0, 2.0])
    assert report.rows[1].seeds == 2


def test_what_is_reported_never_fails():
    report = Report("x")
    report.note("bits per byte", 1.52)
    report.published("MMLU", 60.1)
    report.published("perplexity", 5.5, 12.25)
    assert report.passed
    assert [row.passed for row in report.rows] == [None] * 3
    assert report.rows[2].expected == "5.5 (paper)"
    assert report.rows[2].value == "12.25"


def test_a_check_that_breaks_has_failed(capsys):
    def broken(report):
        report.equal("fine", 1, 1)
        raise RuntimeError("no [bold]luck")

    report = run_check("x", broken)
    assert [row.kind for row in report.rows] == ["equal", "error"]
    assert report.status == 1
    assert "Traceback" in capsys.readouterr().err


def test_all_checks_run_and_the_worst_status_counts():
    file, ran = io.StringIO(), []
    checks = {
        "good": lambda report: ran.append(report.equal("a", 1, 1)),
        "bad": lambda report: ran.append(report.equal("b", 1, 2)),
        "late": lambda report: ran.append(report.less("c|d [e]", [1, 2], 3)),
    }
    assert run_checks(checks, console=Console(file=file, width=100)) == 1
    assert ran == [True, False, True]
    assert "c|d [e] (2 seeds)" in file.getvalue()
    assert run_checks({"good": checks["good"]}, console=Console(file=io.StringIO())) == 0


def test_the_page_of_landmarks(tmp_path):
    def check(report):
        report.less("loss | held-out", [1.0, 1.1], 2)
        report.published("MMLU", 60.1)

    path = write_landmarks(
        tmp_path / "docs" / "landmarks.md",
        [run_check("gpt2", check), run_check("bad", lambda r: r.equal("n", 1, 2))],
        commit="abc1234",
        day=date(2026, 1, 2),
    )
    text = path.read_text()
    assert "2026-01-02, commit abc1234." in text
    assert "| [gpt2](#gpt2) | 1 | 0 |" in text
    assert "| [bad](#bad) | 1 | 1 |" in text
    assert "| ✓ | loss \\| held-out | 1.05 | < 2 | 2 | 0.071 |  |" in text
    assert "| · | MMLU |  | 60.1 (paper) |  |  |  |" in text
    assert "| ✗ | n | 1 | 2 |" in text


def test_a_chart_is_a_file_that_the_page_shows(tmp_path):
    x = np.arange(1, 5.0)
    svg = draw([Curve(x, 1 / x, style="points", marker="s", label="law")], Axis("compute"), Axis("loss"), title="a < b")
    report = Report("nfnet", charts=tmp_path / "charts")
    report.equal("n", 1, 1)
    path = report.chart("Loss & compute", svg)
    assert path == tmp_path / "charts" / "nfnet-loss-compute.svg"
    assert report.rows[-1].passed is None
    console = Console(file=io.StringIO(), width=400)
    report.print(console)
    assert str(path) in console.file.getvalue()
    page = write_landmarks(tmp_path / "docs" / "landmarks.md", [report], commit="abc1234").read_text()
    assert "![Loss & compute](pictures/landmarks/nfnet-loss-compute.svg)" in page
    assert str(path) not in page
    assert (tmp_path / "docs" / "pictures" / "landmarks" / "nfnet-loss-compute.svg").read_bytes() == path.read_bytes()


def test_a_chart_file_needs_no_page_around_it(tmp_path):
    x = np.arange(1, 5.0)
    path = Report("x", tmp_path).chart("c", draw([Curve(x, x, label="mine")], Axis("x"), Axis("y"), title="c"))
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in path.read_text()
    assert "mine" in {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}


def test_the_page_names_the_commit_of_its_tree(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    text = write_landmarks(tmp_path / "docs" / "landmarks.md", []).read_text()
    assert f"commit {head[:10]}" in text


def test_it_all_fits_into_a_dictionary():
    found = run_check("x", lambda r: r.equal("a", (1, 2), (1, 2))).to_dict()
    assert found["name"] == "x"
    assert found["passed"] is True
    assert found["rows"][0]["value"] == "(1, 2)"
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["rows"]))
