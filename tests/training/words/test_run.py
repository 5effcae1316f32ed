"""Training word vectors: repeatable, resumable to the bit, and a run like any other on disk."""

import json
import os
import signal

import numpy as np
import pytest

pytest.importorskip("numba")

import onefold
from onefold.core.errors import UserError
from onefold.training.words import glove, skipgram
from onefold.training.words import run as words
from onefold.training.words.glove import Glove
from onefold.training.words.run import WordRun
from onefold.training.words.skipgram import SkipGram

METHODS = {"skipgram": SkipGram, "glove": Glove}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(skipgram, "PIECE", 500)
    monkeypatch.setattr(glove, "PIECE", 40)
    monkeypatch.setattr(words, "ROUND", 4)


@pytest.fixture
def text(tmp_path):
    """Two topics, whose words never meet."""
    random = np.random.default_rng(0)
    lines = [" ".join(f"{topic}{i}" for i in random.integers(0, 12, 12)) for topic in random.choice(["x", "y"], 800)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return tmp_path / "text.txt"


def run(text, out, kind, **settings) -> WordRun:
    model = {"kind": kind, "width": 8, "window": 3, "epochs": 2}
    base = {"data": {"sources": str(text), "ends": "line"}, "model": model, "trainer": {"threads": 1}, "out": str(out)}
    return WordRun.from_dict(base).but(settings)


@pytest.mark.parametrize("kind", METHODS)
def test_one_thread_gives_the_same_bits_and_another_seed_gives_others(text, tmp_path, kind):
    found = [words.train(run(text, tmp_path / f"{n}", kind, seed=seed)).vectors for n, seed in enumerate((0, 0, 1))]
    assert (found[0].matrix == found[1].matrix).all()
    assert (found[0].matrix != found[2].matrix).any()


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("signalled", [True, False])
def test_a_run_goes_on_to_the_same_bits(text, tmp_path, kind, signalled, monkeypatch):
    settings = {"trainer.checkpoint_every": 3}
    whole = words.train(run(text, tmp_path / "whole", kind, **settings))
    step, cut, stops = METHODS[kind].step, run(text, tmp_path / "cut", kind, **settings), [10]

    def stopping(self, number):
        if number in stops:
            stops.clear()
            if not signalled:
                raise KeyboardInterrupt  # as a kill: what came after the last checkpoint is lost
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(METHODS[kind], "step", stopping)
    if signalled:
        assert words.train(cut).status == "interrupted"
    else:
        with pytest.raises(KeyboardInterrupt):
            words.train(cut)
    result = words.train(cut)
    assert result.status == "finished"
    assert (result.vectors.matrix == whole.vectors.matrix).all()
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("kind", METHODS)
def test_several_threads_learn_that_topics_differ(text, tmp_path, kind):
    epochs = {"model.epochs": 20, "model.rate": 0.1}
    vectors = words.train(run(text, tmp_path / "run", kind, **{"trainer.threads": 2, **epochs})).vectors
    for word in ("x3", "y5"):
        assert {near[0] for near, _ in vectors.neighbours(word, 5)} == {word[0]}


def test_a_run_is_reached_and_left_like_any_other(text, tmp_path):
    settings = {"data": str(text), "out": str(tmp_path / "run"), "model.epochs": 1, "trainer.threads": 1}
    result = onefold.train("word2vec", tiny=True, **settings)
    assert result.status == "finished"
    again = onefold.train(tmp_path / "run")  # its config.json says what it is
    assert (again.step, again.vectors.words) == (result.step, result.vectors.words)
    found = onefold.load_vectors(tmp_path / "run")
    assert found.words == result.vectors.words
    assert (found.matrix == result.vectors.matrix).all()
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["words"] == 9600
    assert 0 < record["loss"] < 10
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What it learned" in page
    assert "words read" in page
    with pytest.raises(UserError, match="holds another run"):
        onefold.train("word2vec", tiny=True, **settings | {"model.window": 2})


def test_other_text_under_the_same_name_is_told(text, tmp_path):
    job = run(text, tmp_path / "run", "skipgram")
    words.train(job)
    text.write_text(text.read_text() + "\nx1 x2")
    assert words.train(job).status == "finished"  # what was prepared serves on
    for folder in (tmp_path / "run" / "data").iterdir():
        (folder / "data.json").unlink()
    with pytest.raises(UserError, match="the data have changed"):
        words.train(job)


def test_a_rate_that_is_too_large_stops_in_a_line(text, tmp_path):
    with pytest.raises(UserError, match="give a smaller model"):
        words.train(run(text, tmp_path / "run", "glove", **{"model.rate": 1e30}))


def test_pairs_that_are_counted_are_kept(text, tmp_path, capsys):
    words.train(run(text, tmp_path / "run", "glove", **{"model.epochs": 1}))
    capsys.readouterr()
    with pytest.raises(UserError, match="another run"):
        words.train(run(text, tmp_path / "run", "glove", **{"model.epochs": 3}))
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        for file in sorted(step.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        step.rmdir()
    words.train(run(text, tmp_path / "run", "glove", **{"model.epochs": 3}))
    assert "counting pairs" not in capsys.readouterr().err
