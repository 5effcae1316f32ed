"""Adapters on the command line: conversations teach a model, and a page shows what changed."""

import json

import pytest
import torch
from typer.testing import CliRunner

import onefold
from onefold import recipes
from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.study.results import read_results
from onefold.training.run import Run, train
from tests.training.conftest import WORDS, make_corpus, small_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return train(small_run(make_corpus(folder / "text"), folder / "base").but({"trainer.steps": 4}))


def test_the_recipe_round_trips(tmp_path):
    run = recipes.resolve("lora", {"start": "model.gguf", "chat": "dialogues.jsonl", "adapt.0.rank": 8})
    assert (run.adapt[0].rank, run.data.path) == (8, "dialogues.jsonl")
    assert Run.from_json(run.to_json()) == run
    with pytest.raises(UserError, match="say which one with start="):
        onefold.train("lora", tiny=True, out=str(tmp_path / "out"))


def test_align_and_merge(base, tmp_path):
    talks = [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word} it is"}]}
        for word in WORDS * 4
    ]
    chat, out = tmp_path / "chat.jsonl", tmp_path / "out"
    chat.write_text("\n".join(json.dumps(talk | {"id": i}) for i, talk in enumerate(talks)))
    given = [f"chat={chat}", f"out={out}", "epochs=1", "optimizer.lr=0.01", "trainer.device=cpu"]
    called = CliRunner().invoke(app, ["align", str(base.out), *given])
    assert called.exit_code == 0, called.output
    results = read_results(out)
    assert results["final"]["loss"] < results["final"]["loss_before"]
    assert results["samples"][0]["title"] == "Question 1, before"
    assert "after" in (out / "report.html").read_text()

    adapted = onefold.load(out)
    called = CliRunner().invoke(app, ["merge", str(out), str(tmp_path / "merged")])
    assert "with adapter merged" in called.output
    called = CliRunner().invoke(app, ["merge", str(out), str(base.out)])
    assert isinstance(called.exception, UserError)
    assert "exists already" in str(called.exception)
    merged = onefold.load(tmp_path / "merged")
    assert not merged.adapters
    ids = [[3, 5, 7, 9]]
    assert (merged.logits(ids) - adapted.logits(ids)).abs().max() < 1e-5


def test_tokens_that_are_new_to_a_model_are_learned(tmp_path):
    """Their vectors begin alike, so that without learning them no answer would ever end."""
    given = {
        "data.tokenizer.special": ["<|endoftext|>"],
        "model.vocab": 280,
        "trainer.steps": 2,
        "out": str(tmp_path / "plain"),
    }
    base = train(small_run(make_corpus(tmp_path / "text"), tmp_path / "plain").but(given))
    talk = {"messages": [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a it is"}]}
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(talk | {"id": i}) for i in range(8)))
    run = recipes.resolve("lora", {"start": str(base.out), "chat": str(tmp_path / "chat.jsonl")}, tiny=True)
    train(run.but({"out": str(tmp_path / "out"), "trainer.steps": 3, "trainer.device": "cpu", "data.context": 24}))
    model = onefold.load(tmp_path / "out")
    new = model.network.embed.token.weight[-4:]
    assert len(torch.unique(new, dim=0)) == 4
    with pytest.raises(UserError, match=r"embed\.token\.weight was trained in full"):
        model.save(tmp_path / "peft", "peft")
