"""Scores against sums done by hand."""

import math

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.documents import TextData, TrainBPE
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.evaluation.evaluate import Score, Sliding, bits_per_byte, evaluate, evaluate_documents, evaluate_text
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from tests.infer.small_models import config, decoder

TEXTS = ["def add(a, b): return a + b\n", "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 4, "x"]


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = Tokenizer.train(TEXTS, 280)
    described = config("llama2", vocab=300, context=32)
    return Model(Loaded(described, decoder(described), tokenizer))


@torch.no_grad()
def cost(model: Model, ids: list[int], first: int) -> float:
    """Nats of ids[first:], each behind all that stands before it."""
    logp = model.network(torch.tensor([ids]))[0].log_softmax(-1)
    return -sum(float(logp[i - 1, ids[i]]) for i in range(first, len(ids)))


def ids_of(model: Model, text: str) -> list[int]:
    t = model.tokenizer
    return [t.start, *t.encode(text), t.end]


def test_every_token_is_predicted_once_behind_as_much_context_as_fits(model):
    want, tokens = 0.0, 0
    for text in TEXTS:
        ids = ids_of(model, text)
        want += cost(model, ids[:17], 1)  # the first window
        for first in range(17, len(ids), 4):
            last = min(first + 4, len(ids))
            start = max(0, last - 1 - 16)
            want += cost(model, ids[start:last], first - start)
        tokens += len(ids) - 1
    score = evaluate_documents(model, TEXTS, Sliding(context=16, stride=4, rows=3))
    assert score.nats == pytest.approx(want, rel=1e-5)
    assert score.tokens == tokens
    assert score.bytes == sum(len(text.encode()) for text in TEXTS)


def test_text_within_one_window_costs_what_it_costs_whole(model):
    score = evaluate_documents(model, [TEXTS[0]])
    ids = ids_of(model, TEXTS[0])
    assert len(ids) <= 33
    assert score.nats == pytest.approx(cost(model, ids, 1), rel=1e-5)


def test_figures_of_a_score():
    score = Score(nats=80.0, tokens=40, bytes=100) + Score(nats=20.0, tokens=10, bytes=100)
    assert score.loss == 2.0
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.bits_per_byte == pytest.approx(100 / math.log(2) / 200)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(f"{i} times {k} is {i * k}," for k in range(1 + i * i)))
    data = TextData(sources=str(folder), context=16, tokenizer=TrainBPE(vocab=290), held_out=0.4)
    return data.prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def reader(dataset) -> Model:
    described = config("llama2", vocab=300, context=2048)
    return Model(Loaded(described, decoder(described), dataset.tokenizer))


@pytest.mark.parametrize("stride", [None, 4])
def test_a_prepared_split_costs_what_its_documents_cost(dataset, reader, stride):
    """The dataset's own windows and those over plain documents: two ways to the same sum."""
    texts = [document.text for document in dataset.text("held_out")]
    sliding = Sliding(context=16, stride=4)
    want = evaluate_documents(reader, texts, sliding)
    if stride is None:  # every piece by itself, behind the token before it
        nats = 0.0
        for text in texts:
            ids = ids_of(reader, text)
            nats += sum(cost(reader, ids[i : i + 17], 1) for i in range(0, len(ids) - 1, 16))
        want = Score(nats, want.tokens, want.bytes)
    reader.network.train()
    got = bits_per_byte(reader.network, dataset, "held_out", rows=3, stride=stride)
    assert reader.network.training
    reader.network.eval()
    assert got == pytest.approx(want.bits_per_byte, rel=1e-4)
    assert want.tokens == dataset.facts["held_out"]["tokens"]


def test_the_command_prints_its_result(model, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXTS[1])
    score = evaluate_text(model, str(tmp_path), context=16)
    assert f"{score.bits_per_byte:.4f} bits per byte" in capsys.readouterr().out
    assert score.bytes == len(TEXTS[1].encode())


def test_what_cannot_be_evaluated_is_said(model):
    with pytest.raises(UserError, match="exceeds the model's context of 32"):
        evaluate_documents(model, TEXTS, Sliding(context=64))
    with pytest.raises(UserError, match="must not exceed the context"):
        evaluate_documents(model, TEXTS, Sliding(context=8, stride=9))
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(model.network, [], 0)
    with pytest.raises(UserError, match="did you mean stride"):
        evaluate_text(model, "stdlib", strid=4)
