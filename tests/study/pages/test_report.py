"""The page: it holds what there is, leaves out what is not, asks nothing of the network, and trusts no text."""

import re
from html.parser import HTMLParser
from typing import get_args

import pytest

from onefold.objectives.every import AnyObjective
from onefold.study.pages.report import write_report
from onefold.study.results import write_results

from ..conftest import lay_chain

VOID = {"meta", "link", "input", "br", "img"}
EVIL = """</code></pre><script>alert(1)</script><img src=x onerror="alert(2)">'"&{{ 7*7 }}"""


class Page(HTMLParser):
    """Checks that tags nest, and remembers tags, attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.ids = [], [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(run, **more) -> Page:
    return Page(write_report(run, **more).read_text("utf-8"))


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    """The whole page of a whole run."""
    return write_report(lay_chain(tmp_path_factory.mktemp("runs") / "quickstart")).read_text("utf-8")


def test_all_that_is_known_is_there(html):
    found = Page(html)
    for text in (
        "In 5.0 minutes on 2 CPU cores, a model of 2.13 million parameters read 3.28 million tokens of",
        "1.49 bits per byte, 11% below xz.",
        "37 held-out files (452,764 bytes)",
        "57% less",  # than the bigram
        "17% more",  # than primed xz
        "Primed xz should fall after about 24 minutes.",
        "Pre-training",
        "Fine-tuning",
        "Step 123, pre-training",
        "a spike: loss 9.1, lately 4.0",
        "2,134,272",
        "data.sources.0.path",
        "9f1c37a20e6dd8b0",
        "onefold quickstart minutes=5",
        "3.11.7",
        "Python's standard library",
        "measured on a part of the held-out files",
        "8 GB",
        "A note.",
    ):
        assert text in found.words, text
    assert {"gradient norm", "learning rate", "tokens per second"} <= {t.strip().lower() for t in found.text}
    assert found.tags.count("svg") >= 14


def test_one_file_that_asks_nothing_of_the_network(html):
    found = Page(html)
    assert "script" not in found.tags
    links = [value for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert "default-src 'none'" in dict(found.attributes)["content"] or "default-src 'none'" in html
    assert len(html) < 1_000_000


def test_identifiers_are_unique_and_references_lead_somewhere(html):
    found = Page(html)
    assert len(found.ids) == len(set(found.ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert wanted
    assert wanted <= set(found.ids)


def test_colours_follow_the_theme(html):
    drawn = "".join(re.findall(r'<svg class="chart".*?</svg>', html, re.S))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    variables = set(re.findall(r"var\((--[\w-]+)\)", drawn))
    assert {"--series-1", "--muted", "--line"} <= variables
    assert all(f"{name}:" in html for name in variables)


@pytest.mark.usefixtures("undrawn")
def test_text_is_never_markup(chain):
    (chain / "pretrain" / "config.json").write_text('{"model": {"width": "<b>192</b>", "<i>x</i>": 1}}')
    write_results(
        chain,
        title=EVIL,
        data={"name": EVIL, EVIL: EVIL, "train": {EVIL: 3}},
        machine={"cpu": EVIL},
        notes=[EVIL],
        reproduce=[EVIL],
        baselines=[{"name": EVIL, "bits_per_byte": 1.6, "note": EVIL}],
        stages=[{"name": "x", "folder": "pretrain", "title": EVIL}],
        samples=[
            {"title": EVIL, "prompt": EVIL, "text": EVIL, "language": language, "settings": {EVIL: EVIL}}
            for language in ("python", "html", "no-such-language", None)
        ]
        + [
            {"messages": [{"role": EVIL, "content": EVIL}, {"role": "assistant", "content": f"```{EVIL}\n{EVIL}\n```"}]}
        ],
    )
    found = page(chain)
    assert not {"script", "img", "b onerror"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "7*7" in found.words
    assert found.words.count("alert(1)") > 10
    assert "<b>192</b>" in found.words


@pytest.mark.usefixtures("undrawn")
def test_control_characters_and_half_characters_do_not_break_it(chain):
    write_results(chain, samples=[{"prompt": "a\x00b\x1b[31m", "text": "c\r\nd" + "x" * 100_000}])
    html = write_report(chain).read_text("utf-8")
    assert "\x00" not in html
    assert "\x1b" not in html
    assert len(html) < 1_000_000
    Page(html)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "sections", [{}, {"final": {"bits_per_byte": 1.5}}, {"baselines": []}, {"samples": [{"prompt": "x"}]}, {"data": {}}]
)
def test_what_is_missing_is_left_out(make_run, sections):
    run = make_run()
    write_results(run, **sections)
    assert "How it learned" in page(run).words
    (run / "config.json").unlink()
    (run / "log.jsonl").unlink()
    if sections:
        assert "How it learned" not in page(run).words


def test_a_run_without_results_or_evaluations(make_run):
    log = [{"step": s, "loss": 3 - s / 100, "seconds": s} for s in range(1, 100)]
    found = page(make_run(log=log))
    assert "nats per token" in found.words
    assert "Against counting" not in found.words


@pytest.mark.parametrize(
    ("config", "axis"),
    [
        ({"objective": {"kind": "infonce"}}, "loss, nats per pair"),
        ({"objective": {"kind": "regression"}}, "loss, squared error"),
        ({"kind": "words", "model": {"kind": "glove"}}, "loss, weighted squared error"),
        ({"objective": {"kind": "their.module:Objective"}}, "loss"),
    ],
)
def test_the_axis_says_what_the_loss_is_counted_in(make_run, config, axis):
    log = [{"step": s, "loss": 3 - s / 100, "seconds": s} for s in range(1, 100)]
    assert axis in [text.strip() for text in page(make_run(config=config, log=log)).text]


def test_every_objective_says_what_its_loss_is_counted_in():
    assert all(objective.loss_unit for objective in get_args(AnyObjective))


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 3.0}], [{"step": 1}, {"step": 2, "loss": None, "lr": 0}]])
def test_a_run_that_hardly_began(make_run, log):
    assert page(make_run(log=log)).words


@pytest.mark.usefixtures("undrawn")
def test_stages_by_title_and_another_place(make_run, tmp_path):
    out = tmp_path / "elsewhere.html"
    assert write_report({"First": make_run("a"), "Second": make_run("b")}, out=out) == out
    words = Page(out.read_text("utf-8")).words
    assert "First" in words
    assert "Second" in words


@pytest.mark.usefixtures("undrawn")
def test_baselines_alone_need_no_model(make_run):
    run = make_run(log=[])
    write_results(run, baselines=[{"name": "xz", "bits_per_byte": 1.6}, {"name": "odd", "bits_per_byte": None}])
    words = page(run).words
    assert "1.600" in words
    assert "This model" not in words
    assert "odd" not in words
