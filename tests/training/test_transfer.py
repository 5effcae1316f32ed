"""From a model without labels to a classifier, for every kind of model that was a step on the way to BERT."""

import json

import numpy as np
import pytest
import torch

import onefold
from onefold.core.errors import UserError
from onefold.interop.open import open_model
from onefold.interop.words.word_vectors import save_vectors
from onefold.models.words.word_vectors import WordVectors
from onefold.training.run import Run, train

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
HEAD = {"lstm": 16, "pooling": "max"}
MODELS = {
    "decoder": {
        **{"kind": "decoder", "width": 16, "depth": 2, "init": "fan_in"},
        "block": {"mixer": {"kind": "attention", "heads": 2}, "ffn": {"kind": "mlp", "width": 32}},
        "embed": {"position": {"kind": "learned", "context": 24}},
    },
    "recurrent": {"kind": "recurrent", "width": 12, "hidden": 20, "depth": 2, "dropout": {"weights": 0.3}},
    "bilm": {"kind": "bilm", "width": 12, "hidden": 16, "depth": 2, "classifier": HEAD},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Texts of two classes, told apart by a word and by nothing else."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [(f"alpha {'beta ' * (i % 5)}{'gamma' if i % 2 else 'delta'} eta", "ab"[i % 2]) for i in range(60)]
    file.write_text("".join(json.dumps({"text": f"{t} {i // 2}", "label": c}) + "\n" for i, (t, c) in enumerate(texts)))
    return file


def pretraining(kind: str, corpus, out) -> Run:
    tokenizer = {"kind": "bpe", "vocab": 280, "special": SPECIAL}
    return Run.from_dict(
        {
            "data": {"kind": "text", "sources": [str(corpus)], "context": 24, "tokenizer": tokenizer},
            "model": {**MODELS[kind], "vocab": 288, "context": 24},
            "objective": {"kind": "both_directions" if kind == "bilm" else "next_token"},
            "optimizer": {"kind": "adamw", "lr": 5e-3, "weight_decay": 0.0},
            "trainer": {"steps": 8, "batch": 8, "micro_batch": 4, "device": "cpu", "checkpoint_every": 6},
            "out": str(out),
        }
    )


@pytest.fixture(scope="module", params=MODELS)
def pretrained(request, corpus, tmp_path_factory):
    return train(pretraining(request.param, corpus, tmp_path_factory.mktemp(request.param) / "out"))


def classifier(start, rows, out) -> Run:
    return Run.from_dict(
        {
            "data": {"kind": "labelled_text", "path": str(rows), "context": 24, "held_out": 0.3},
            "objective": {"kind": "classification"},
            "optimizer": {"kind": "adamw", "lr": 3e-2, "weight_decay": 0.0},
            "trainer": {"steps": 40, "batch": 16, "device": "cpu", "evaluate_every": 40, "checkpoint_every": 20},
            "start": str(start),
            "out": str(out),
        }
    )


def last(result) -> dict[str, float]:
    return next(record["held_out"] for record in reversed(result.log) if "held_out" in record)


def test_a_language_model_learns_and_becomes_a_classifier(pretrained, rows, tmp_path):
    assert pretrained.log[-1]["loss"] < pretrained.log[0]["loss"]
    result = train(classifier(pretrained.out, rows, tmp_path / "out"))
    assert last(result)["accuracy"] > 0.8
    before, after = open_model(pretrained.out).model, open_model(result.out).model
    name = "embed.token.weight" if hasattr(before.embed, "token") else "embed.weight"
    moved = not torch.equal(before.state_dict()[name], after.state_dict()[name])
    assert moved == (pretrained.run.model.kind != "bilm")  # ELMo's language models stay as they are
    model = onefold.load(result.out)
    assert model.classes == ("a", "b")
    texts = list(result.dataset.texts("held_out"))
    found = model.best([text for text, *_ in texts], 1)
    right = sum(best == label for ((best, _),), (*_, label) in zip(found, texts))
    assert right / len(texts) == pytest.approx(last(result)["accuracy"])  # whatever is padded
    torch.testing.assert_close(model.classify([texts[0][0]]), model.classify([t for t, *_ in texts])[:1])


def test_gpts_objective_and_ulmfits_rates_are_data(corpus, rows, tmp_path):
    gpt = train(pretraining("decoder", corpus, tmp_path / "gpt"))
    both = train(classifier(gpt.out, rows, tmp_path / "both").but({"objective": {"kind": "classification_and_next"}}))
    assert last(both)["language"] < 6
    assert last(both)["accuracy"] > 0.8

    lstm = train(pretraining("recurrent", corpus, tmp_path / "lstm"))
    groups = [{"pattern": "blocks.0.*", "frozen_until": 4}, {"pattern": "*embed*", "frozen_until": 4}]
    slanted = {"trainer.steps": 4, "trainer.schedule": {"kind": "slanted_triangular"}}
    thawing = {"optimizer.groups": groups, "optimizer.layer_decay": 1 / 2.6, **slanted}
    result = train(classifier(lstm.out, rows, tmp_path / "thawing").but(thawing))
    before, after = (open_model(path).model.state_dict() for path in (lstm.out, result.out))
    assert torch.equal(before["blocks.0.weight_hh"], after["blocks.0.weight_hh"])
    assert not torch.equal(before["blocks.1.weight_hh"], after["blocks.1.weight_hh"])


def test_word_vectors_are_a_start(rows, tmp_path):
    numbers = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    vectors = WordVectors(["alpha", "beta", "gamma", "delta", "eta"], numbers)
    save_vectors(vectors, tmp_path / "words", "onefold")
    result = train(classifier(tmp_path / "words", rows, tmp_path / "out").but({"trainer.steps": 60}))
    assert last(result)["accuracy"] > 0.8
    model = onefold.load(result.out)
    (place, end), _ = model.tokenizer.encode_framed(["Alpha"])[0]
    torch.testing.assert_close(model.network.embed.weight[place], torch.from_numpy(vectors["alpha"]))
    assert not model.network.embed.weight[end].any()
    assert model.best(["alpha gamma eta"], 1)[0][0][0] == "b"
    assert model.classify(["…"]).isfinite().all()  # no words at all
    with pytest.raises(UserError, match="load_vectors"):
        onefold.load(tmp_path / "words")
