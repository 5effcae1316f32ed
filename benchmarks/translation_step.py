"""A training step of an encoder-decoder against `transformers`: MarianMTModel of the same shape on the same batches.

    python benchmarks/translation_step.py                 # both shapes, 1.4M and 14M parameters
    python benchmarks/translation_step.py --rounds 20 --threads 1

A step is forward, loss, backward, clipping and update by torch's fused AdamW, fp32, dropout 0.1. A batch holds pairs of
like lengths, about 1,500 tokens a side, padding included. `transformers` runs as its users run it: the model's own
loss, SDPA attention. Both models have the same weights, and their losses are compared first. Ratios above 1 mean that
Onefold is faster.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from race import begin, parser, race
from train_step import stepper

from onefold.core.batch import Seq2SeqBatch
from onefold.data.text.corruption.sequences import stacked
from onefold.data.text.pairs.seq2seq import seq2seq_batch
from onefold.data.text.pairs.token_batches import plan_tokens
from onefold.interop.loaded import Loaded
from onefold.interop.save import save
from onefold.models import seq2seq_families as families
from onefold.models.transformer import count_parameters
from onefold.objectives.language import NextToken

SHAPES = {
    "1.4M": dict(vocab=4096, width=128, depth=2, heads=4),
    "14M": dict(vocab=16384, width=320, depth=3, heads=5),
}
TOKENS, LONGEST = 1500, 60
BATCHES = 8


def config(vocab: int, width: int, depth: int, heads: int):
    blocks = ("encoder.block.mixer", "decoder.block.mixer", "decoder.block.cross")
    sides = {
        f"{side}.{k}": v
        for side in ("encoder", "decoder")
        for k, v in (("depth", depth), ("block.ffn.width", 4 * width))
    }
    attention = {block: {"heads": heads, "dropout": 0.0} for block in blocks}
    return families.marian().but({"vocab": vocab, "width": width, "start": vocab - 1, **sides, **attention})


def batches(vocab: int) -> list[Seq2SeqBatch]:
    """Pairs as long as sentences are, planned as a loader would."""
    generator = np.random.default_rng(0)
    source = np.clip(generator.lognormal(3.0, 0.5, 4000), 3, LONGEST).astype(int)
    target = np.clip(source * generator.lognormal(0.0, 0.15, len(source)), 3, LONGEST).astype(int)
    plan = plan_tokens(np.stack((source, target), 1), TOKENS, 1)
    found = []
    for batch in range(BATCHES):
        pairs = plan.pairs(slice(batch, batch + 1))
        sides = [
            stacked(generator.integers(3, vocab - 1, n.sum()), n, vocab - 1) for n in (source[pairs], target[pairs])
        ]
        found.append(seq2seq_batch(*sides, vocab - 1, vocab - 1, tuple(side.tokens.shape[1] for side in sides)))
    return found


def contenders(shape: dict, steps: int, clock: Callable[[], float]) -> dict:
    """Both, as functions that return seconds a step, once they agree on the loss."""
    ours = config(**shape).build()
    with tempfile.TemporaryDirectory() as folder:
        save(Loaded(ours.config, ours, None), Path(folder) / "hf", "hf")
        theirs = transformers.MarianMTModel.from_pretrained(Path(folder) / "hf")
    objective, given = NextToken().build(), batches(shape["vocab"])

    def our_loss(batch: Seq2SeqBatch):
        term = objective(ours, batch, 0).terms["ce"]
        return term.sum / term.count

    def their_loss(batch: Seq2SeqBatch):
        seen = None if batch.source_segments is None else 1 - batch.source_segments
        labels = batch.targets.masked_fill(batch.weights == 0, -100)
        return theirs(batch.source, attention_mask=seen, decoder_input_ids=batch.tokens, labels=labels).loss

    with torch.no_grad():
        a, b = (loss(given[0]).item() for loss in ((ours.eval(), our_loss)[1], (theirs.eval(), their_loss)[1]))
    assert abs(a - b) < 1e-3, f"the losses differ: {a} and {b}"
    ours.train()
    theirs.train()
    turns = [itertools.cycle(given) for _ in range(2)]
    return {
        "transformers": stepper(theirs, lambda: their_loss(next(turns[0])), steps, clock),
        "onefold": stepper(ours, lambda: our_loss(next(turns[1])), steps, clock),
    }


def main() -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--steps", type=int, default=BATCHES, help="optimizer steps a round")
    options = begin(made)
    transformers.logging.set_verbosity_error()
    for shape in SHAPES.values():
        print(
            f"\nMarian-shaped, {count_parameters(config(**shape)):,} parameters, about {TOKENS:,} tokens a side a step"
        )
        race(contenders(shape, options.steps, options.clock), options.rounds, "transformers")


if __name__ == "__main__":
    main()
