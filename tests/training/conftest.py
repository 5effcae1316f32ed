"""A corpus of a few thousand words and a run over it that takes a second."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from onefold.training.run import Run

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "omicron"]


def make_corpus(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(30):
        generator = random.Random(i)
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(10, 200)))
        (folder / f"{i}.txt").write_text(text)
    return folder


def small_run(corpus: Path, out: Path) -> Run:
    """12 steps of Muon, with dropout, over mixed and pure batches in two micro-batches each."""
    attention = {"kind": "attention", "heads": 4, "kv_heads": 2, "position": {"kind": "rotary"}}
    block = {"mixer": attention, "ffn": {"kind": "gated", "width": 40}, "dropout": 0.1}
    tokenizer = {"kind": "bpe", "vocab": 280}
    return Run.from_dict(
        {
            "data": {"kind": "text", "sources": [str(corpus)], "context": 24, "tokenizer": tokenizer},
            "model": {"kind": "decoder", "vocab": 288, "width": 16, "depth": 2, "context": 24, "block": block},
            "optimizer": {"kind": "muon", "lr": 0.02},
            "trainer": {"steps": 12, "batch": 8, "micro_batch": 4, "device": "cpu", "checkpoint_every": 4},
            "out": str(out),
        }
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def make_run(corpus, tmp_path) -> Callable[..., Run]:
    """make_run({"trainer.steps": 5}) → a small run in a folder of its own test, "out" unless changed."""
    return lambda changes=None: small_run(corpus, tmp_path / "out").but(changes or {})
