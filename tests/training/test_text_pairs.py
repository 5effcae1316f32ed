"""Training on pairs of texts: batches of any number of rows change nothing about micro-batches and resuming."""

import pytest

from onefold.models import seq2seq_families as families
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.training.log import read_log
from onefold.training.run import Run, train

TRANSFORMER = families.transformer().but(
    {"vocab": 300, "width": 16, "context": 96, "embed.dropout": 0.0}
    | {f"{side}.depth": 1 for side in ("encoder", "decoder")}
    | {f"{side}.block.ffn.width": 32 for side in ("encoder", "decoder")}
    | {f"{side}.block.dropout": 0.0 for side in ("encoder", "decoder")}
    | {
        f"{block}": {"heads": 2, "dropout": 0.0}
        for block in ("encoder.block.mixer", "decoder.block.mixer", "decoder.block.cross")
    }
)
RECURRENT = RecurrentSeq2SeqConfig(vocab=300, width=16, depth=1)


@pytest.fixture
def make(tmp_path):
    (tmp_path / "t.tsv").write_text("source\ttarget\n" + "".join(f"{'a b ' * n}\t{'c ' * n}\n" for n in range(1, 40)))

    def made(model, out, **trainer):
        return Run.from_dict(
            {
                "data": {
                    "kind": "text_pairs",
                    "path": f"{tmp_path}/t.tsv",
                    "context": 96,
                    "held_out": 0.2,
                    "tokenizer": {"kind": "bpe", "vocab": 270, "special": ["<pad>", "</s>", "<unk>"]},
                },
                "model": model.to_dict(),
                "objective": {"kind": "next_token", "smoothing": 0.1},
                "trainer": {"steps": 6, "batch": 4, "checkpoint_every": 2, "device": "cpu", **trainer},
                "out": str(tmp_path / out),
            }
        )

    return made


@pytest.mark.parametrize("model", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
def test_micro_batches_and_resuming_change_nothing(make, model):
    whole = train(make(model, "whole", micro_batch=4))
    train(make(model, "parts", micro_batch=1, steps=4))
    parts = train(make(model, "parts", micro_batch=1))
    assert len(whole.log) == len(parts.log) == 6
    for a, b in zip(whole.log, read_log(parts.out / "log.jsonl")):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5)
    assert whole.log[-1]["held_out"]["loss"] < 6.5
    assert whole.log[-1]["tokens"] > 6 * 2 * 96
