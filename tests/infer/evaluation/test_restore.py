"""Encoder-decoders judged by what they were trained for: text with gaps, or pairs."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.denoising import DenoisingTextData
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS, Tokenizer
from onefold.infer.evaluation import restore
from onefold.infer.evaluation.restore import judge_texts
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.interop.loaded import Loaded
from tests.models.test_seq2seq import MODELS, rough

TEXT = "The green river runs past the old mill, and the miller listens to the water all day. "


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / f"{i}.txt").write_text(TEXT * (i + 1))
    return str(tmp_path / "notes")


def t5(card) -> Seq2SeqModel:
    tokenizer = Tokenizer.train([TEXT] * 3, 290, T5_TOKENS).add_special([f"<extra_id_{i}>" for i in range(20)])
    config = MODELS["t5"].but({"vocab": tokenizer.size, "start": None, "first": None})
    return Seq2SeqModel(Loaded(config, rough(config), tokenizer, card))


def trained(folder, **changes):
    data = DenoisingTextData(sources=folder, context=32, held_out=0.25).but({"noise.rate": 0.3, **changes}).to_dict()
    return {"run": {"data": data}}


@torch.no_grad()
def plain_loss(model, dataset, split):
    """Batch by batch from the whole logits."""
    nats = tokens = 0.0
    for batch in dataset.evaluation(split, 4):
        said = model.network(*batch.inputs()).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
        nats, tokens = nats - float((said * batch.weights).sum()), tokens + float(batch.weights.sum())
    return nats / tokens, tokens


def test_text_is_restored_with_the_noise_of_training(folder, tmp_path, capsys):
    model = t5(trained("elsewhere/"))
    found = judge_texts(model, folder)
    config = DenoisingTextData(sources=folder, context=32, held_out=0.0).but({"noise.rate": 0.3})
    loss, tokens = plain_loss(model, config.prepare(tmp_path / "data", model.tokenizer), "train")
    assert found.loss.loss == pytest.approx(loss, rel=1e-5)
    assert found.loss.tokens == tokens
    assert "12 documents, noise spans" in capsys.readouterr().out


def test_of_what_it_learned_from_only_what_was_held_out_counts(folder, tmp_path, capsys):
    model = t5(trained(folder))
    found = judge_texts(model, folder)
    dataset = DenoisingTextData.from_dict(model.card["run"]["data"]).prepare(tmp_path / "data", model.tokenizer)
    assert 0 < found.documents == dataset.facts["held_out"]["documents"] < 12
    assert "judged by what was held out" in capsys.readouterr().err


def test_a_published_model_is_told_what_to_restore(folder):
    with pytest.raises(UserError, match="noise=spans"):
        judge_texts(t5({}), folder)
    assert judge_texts(t5({}), folder, noise="spans", context=24).noise == "spans"
    with pytest.raises(UserError, match="mask"):
        judge_texts(t5({}), folder, noise="infilling", context=24)


def test_pairs_stay_pairs(monkeypatch):
    monkeypatch.setattr(restore, "judge_pairs", lambda model, data, **settings: (data, settings))
    gaps = trained("elsewhere/")
    both = {"run": {"data": {"parts": [{"data": gaps["run"]["data"]}, {"data": {"kind": "text_pairs"}}]}}}
    assert judge_texts(t5(gaps), "a.de,a.en") == ("a.de,a.en", {})
    assert judge_texts(t5(gaps), "a.jsonl", source="question") == ("a.jsonl", {"source": "question"})
    assert judge_texts(t5(both), "a.jsonl") == ("a.jsonl", {})
    assert judge_texts(t5({}), "a.jsonl") == ("a.jsonl", {})
