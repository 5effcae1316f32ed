"""Two runs side by side: what differs, who was better, on a terminal and on a page."""

import copy
import io

import pytest
from rich.console import Console

from onefold.core.errors import UserError
from onefold.study.pages.compare import compare

from ..conftest import CONFIG, records


def other(**changes) -> dict:
    config = copy.deepcopy(CONFIG)
    config["optimizer"] = {"kind": "adamw", "lr": 0.003, "betas": [0.9, 0.95]}
    config["out"] = "runs/other"
    return config | changes


@pytest.fixture
def pair(make_run):
    return make_run("muon"), make_run("adamw", config=other(), log=records(worse=1.1, seconds=250))


def test_settings_that_differ_are_named_by_path(pair):
    rows = {row.name: row.values for row in compare(*pair, quiet=True).differences}
    assert rows == {
        "optimizer.kind": ("muon", "adamw"),
        "optimizer.lr": ("0.02", "0.003"),
        "optimizer.betas": ("–", "0.9, 0.95"),
    }


def test_results_tell_the_better_run(pair):
    rows = {row.name: row for row in compare(*pair, quiet=True).results}
    assert rows["held-out bits per byte"].best == 0
    assert rows["training time"].values == ("5.0 minutes", "4.2 minutes")
    assert rows["training time"].best is None
    assert rows["tokens"].values == ("3,276,800", "3,276,800")
    assert rows["tokens per second"].best is None  # the same


def test_time_to_the_worse_runs_end_is_what_the_better_one_saves(pair):
    found = compare(*pair, quiet=True)
    (row,) = [row for row in found.results if row.name.startswith("time to")]
    level = records(worse=1.1)[-1]["held_out"]["bits_per_byte"]
    first = next(r["seconds"] for r in records() if "held_out" in r and r["held_out"]["bits_per_byte"] <= level)
    assert row.name == f"time to {level:.3f} bits per byte"
    assert row.values == (f"{first / 60:.1f} minutes", "4.2 minutes")
    assert row.best == 0


def test_the_terminal_shows_tables_and_curves(pair):
    file = io.StringIO()
    found = compare(*pair, quiet=True)
    found.print(Console(file=file, width=100))
    text = file.getvalue()
    assert "optimizer.lr" in text
    assert "█" in text
    lines = dict(found.sparks())
    assert lines["adamw"].endswith(" ")  # it ended earlier
    assert not lines["muon"].endswith(" ")


def test_the_page_overlays_the_curves(pair, tmp_path, capsys):
    compare(*pair, html=tmp_path / "c.html")
    html = (tmp_path / "c.html").read_text()
    assert "optimizer.kind" in html
    assert html.count('<svg class="chart"') == 4
    assert "muon 1." in html
    assert "Results" in capsys.readouterr().out


def test_equal_runs_have_no_differences(make_run):
    found = compare(make_run("a"), make_run("b"), quiet=True)
    assert found.differences == ()
    assert all(row.best is None for row in found.results)
    file = io.StringIO()
    found.print(Console(file=file))
    assert "All settings are the same" in file.getvalue()


def test_names_grow_until_they_differ(make_run):
    found = compare(make_run("x/pretrain"), make_run("y/pretrain"), quiet=True)
    assert found.names == ("x/pretrain", "y/pretrain")
    assert len(set(compare(make_run("z"), make_run("z"), quiet=True).names)) == 2


@pytest.mark.usefixtures("undrawn")
def test_chains_and_bare_runs_compare(chain, make_run, tmp_path):
    found = compare(
        chain, make_run(log=[{"step": s, "loss": 4 - s / 10} for s in range(1, 9)]), html=tmp_path / "c.html"
    )
    assert found.metric is None
    assert any(row.name == "pretrain.seed" for row in found.differences)


@pytest.mark.usefixtures("undrawn")
def test_markup_in_names_is_only_text(make_run, tmp_path):
    found = compare(make_run("[red]x"), make_run("<b>y"), html=tmp_path / "c.html")
    assert "&lt;b&gt;y" in (tmp_path / "c.html").read_text()
    file = io.StringIO()
    found.print(Console(file=file, width=100))
    assert "[red]x" in file.getvalue()


@pytest.mark.parametrize("number", [0, 1, 7])
def test_too_few_or_too_many_are_refused(make_run, number):
    with pytest.raises(UserError, match="2 to 6 runs"):
        compare(*[make_run()] * number, quiet=True)
