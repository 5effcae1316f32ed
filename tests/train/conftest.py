"""A corpus of a few thousand words and a run over it that takes a second."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from onefold.train.run import Run

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(30):
        generator = random.Random(i)
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(10, 200)))
        (folder / f"{i}.txt").write_text(text)
    return folder


@pytest.fixture()
def make_run(corpus, tmp_path) -> Callable[..., Run]:
    """make_run({"trainer.steps": 5}) → a Run in a folder of its own test, "out" unless changed."""

    def make(changes: dict | None = None) -> Run:
        attention = {"kind": "attention", "heads": 4, "kv_heads": 2, "position": {"kind": "rotary"}}
        run = Run.from_dict(
            {
                "data": {"sources": [str(corpus)], "context": 24, "tokenizer": {"kind": "bpe", "vocab": 280}, "kind": "text"},
                "model": {
                    **{"kind": "decoder", "vocab": 288, "width": 16, "depth": 2, "context": 24},
                    "block": {"mixer": attention, "ffn": {"kind": "gated", "width": 40}, "dropout": 0.1},
                },
                "optimizer": {"kind": "muon", "lr": 0.02},
                "trainer": {"steps": 12, "batch": 8, "micro_batch": 4, "device": "cpu", "checkpoint_every": 4},
                "out": str(tmp_path / "out"),
            }
        )
        return run.but(changes or {})

    return make
