"""Files of texts translated line by line, interruptions included; figures are sacreBLEU's own."""

import sys

import pytest
import sacrebleu

from onefold.core.errors import UserError
from onefold.infer.translate import BEAMS, sacrebleu_scores, translate, translate_file
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig

TEXTS = [f"{'word ' * (n % 7 + 1)}{n}" for n in range(50)]


class Backwards:
    """Stands for a model: writes texts backwards, on two lines; remembers what it was asked, may be interrupted."""

    config, card = RecurrentSeq2SeqConfig(vocab=9, width=4), {"step": 3}

    def __init__(self, until: int = 10**6):
        self.asked: list[list[str]] = []
        self.until = until

    def generate(self, texts, **options):
        assert options == BEAMS | {"max_new_tokens": 9}
        self.asked.append(texts)
        if len(self.asked) > self.until:
            raise KeyboardInterrupt
        return ["\n ".join(reversed(text.split())) for text in texts]


def backwards(texts):
    return [" ".join(reversed(text.split())) for text in texts]


def test_texts_come_back_in_order_though_they_are_written_by_length():
    model = Backwards()
    texts = [*TEXTS[:20], "  ", *TEXTS[20:]]
    assert list(translate(model, texts, batch=3, max_new_tokens=9)) == backwards(texts)
    assert max(map(len, model.asked)) == 3
    pool = [len(text) for some in model.asked[:16] for text in some]
    assert pool == sorted(pool, reverse=True)


def test_a_file_goes_on_after_an_interruption_and_appears_when_it_is_whole(tmp_path, capsys):
    source, out = tmp_path / "a.de", tmp_path / "new" / "a.en"
    source.write_text("\n".join(TEXTS) + "\n\nlast\n")
    with pytest.raises(KeyboardInterrupt):
        translate_file(Backwards(until=20), source, out, batch=1, max_new_tokens=9)
    assert not out.exists()
    part = next(out.parent.iterdir())
    part.write_text(part.read_text()[:-3])  # the machine stopped in the middle of a line
    model = Backwards()
    translate_file(model, source, out, batch=1, max_new_tokens=9)
    assert "going on after 15 of 52 lines" in capsys.readouterr().err
    assert len(model.asked) == 51 - 15
    assert out.read_text().split("\n") == [*backwards(TEXTS), "", "last", ""]
    assert list(out.parent.iterdir()) == [out]


def test_what_belongs_to_another_search_is_not_gone_on_with(tmp_path):
    source, out = tmp_path / "a.de", tmp_path / "a.en"
    source.write_text("one two\n" * 20)
    with pytest.raises(KeyboardInterrupt):
        translate_file(Backwards(until=17), source, out, batch=1, max_new_tokens=9)
    source.write_text("three four\n" * 20)
    translate_file(Backwards(), source, out, batch=1, max_new_tokens=9)
    assert out.read_text() == "four three\n" * 20


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    source = tmp_path / "a.de"
    source.write_text("eins\n")
    for out, options, said in (
        (source, {}, "would overwrite its source"),
        (tmp_path / "b", {"beam": 3}, "beams"),
        (tmp_path / "b", {"batch": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            translate_file(Backwards(), source, out, **options)
    with pytest.raises(UserError, match="could not read"):
        translate_file(Backwards(), tmp_path / "none", tmp_path / "b")
    assert list(tmp_path.iterdir()) == [source]


def test_figures_are_those_of_sacrebleu():
    said = ["the cat sat on the mat .", "a dog barks", "nothing like it"]
    truth = ["the cat sat on a mat .", "the dog barks loudly", "something else entirely"]
    bleu, chrf = sacrebleu_scores(said, truth)
    assert bleu.value == sacrebleu.corpus_bleu(said, [truth]).score
    assert chrf.value == sacrebleu.corpus_chrf(said, [truth]).score
    assert bleu.low < bleu.value < bleu.high
    assert bleu.signature.startswith("BLEU|nrefs:1|bs:1000|")
    assert "tok:zh" in sacrebleu_scores(["我爱你"], ["我爱你"], "zh")[0].signature
    with pytest.raises(UserError, match="there must be as many"):
        sacrebleu_scores(said, truth[:2])


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"onefold\[translation\]"):
        sacrebleu_scores(["a"], ["a"])
