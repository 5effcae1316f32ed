"""A report of translations: everything is escaped, figures are told with their intervals, attention is drawn."""

import numpy as np

from onefold.infer.evaluation.alignment import Alignment
from onefold.study.pages.report import write_report
from onefold.study.pages.translations import alignment_chart, translation_results, translation_sections
from onefold.study.results import write_results

EVIL = "<script>alert(1)</script> & co"


class Echo:
    """Stands for a model without attention that writes what it reads."""

    network = config = None
    tokenizer = None

    def generate(self, texts, **options):
        return texts


def results(**changes):
    attention = {"source": ["a", EVIL], "target": [EVIL], "weights": [[0.25, 0.75]]}
    examples = [{"source": EVIL, "reference": "right", "text": EVIL, "attention": attention}]
    scores = [{"name": "BLEU", "value": 28.4, "low": 27.9, "high": 28.9}]
    found = {"scores": scores, "signature": "BLEU|v", "pairs": 3003, "search": "4 beams", "examples": examples}
    return found | changes


def test_a_square_is_as_dark_as_the_share_and_faint_ones_are_left_out():
    weights = np.array([[0.9, 0.1, 0.0], [0.01, 0.29, 0.7]])
    drawing = str(alignment_chart(Alignment(["x", "y", "</s>"], ["u", "v"], weights)))
    assert [drawing.count(f'fill-opacity="{share:.2f}"') for share in (0.9, 0.1, 0.29, 0.7, 0.01)] == [1, 1, 1, 1, 0]
    assert "v looks at &lt;/s&gt;: 70%" in drawing


def test_what_was_written_and_measured_is_in_the_page_and_harmless(tmp_path):
    page = str(translation_sections(results()))
    assert "BLEU 28.4 (27.9 to 28.9)" in page
    assert "3,003 held-out pairs" in page
    assert "<script>" not in page
    assert "Where it looks" in page
    write_results(tmp_path, translations=results(), final={"bleu": 28.4})
    html = write_report(tmp_path).read_text()
    assert "held-out BLEU" in html
    assert "<script>alert" not in html


def test_a_model_without_attention_has_translations_and_no_pictures(monkeypatch):
    monkeypatch.setattr("onefold.study.pages.translations.align", refuse)
    found = translation_results(Echo(), [("a b c d e", "a b c d e"), ("f", "g")])
    assert found["scores"][0]["name"] == "BLEU"
    assert found["pairs"] == 2
    assert [example["text"] for example in found["examples"]] == ["a b c d e", "f"]
    assert "Where it looks" not in translation_sections(found)
    assert "Measured by" not in translation_sections(found | {"scores": []})


def refuse(*_):
    from onefold.core.errors import UserError

    raise UserError("no attention")
