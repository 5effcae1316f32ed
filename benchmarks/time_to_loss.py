"""How long until a held-out loss is reached: nanoGPT's published recipe against the quickstart's, on the same data.

    python benchmarks/time_to_loss.py                    # Python's standard library, 120 s for nanoGPT, 3 rounds
    python benchmarks/time_to_loss.py --data notes/ --seconds 300 --rounds 5

nanoGPT's (train.py and config/train_shakespeare_char.py): GELU, LayerNorm without biases, learned positions,
AdamW 1e-3 with betas (0.9, 0.99) and decay 0.1, 100 steps of warm-up, cosine to a tenth, clipping at 1. It runs its
whole schedule in T seconds and ends at a loss L. Ours gets T/2 seconds for its whole schedule; when did it pass L?
Tokenizer, width, depth, context, batch, precision and machine are the same (nanoGPT's feed-forward layers are wider);
both train in this one trainer, and only training is timed.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

from race import machine

from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.recipes.quickstart import VOCAB, Quickstart, pretraining
from onefold.training.dial import Size, size_up
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import Result, Run, train


def nanogpt(job: Quickstart, data: TextData, size: Size) -> Run:
    """Its recipe at the same width and depth; the steps are set by the time that they take."""
    model = families.gpt2().but(
        {
            "vocab": data.tokenizer.vocab,
            "width": size.width,
            "depth": size.depth,
            "context": data.context,
            "embed.position.context": data.context,
            "block.mixer": {"heads": size.model().block.mixer.heads, "bias": False, "out_bias": False},
            "block.ffn": {"width": 4 * size.width, "bias": False, "activation": "gelu"},
            "block.norm.bias": False,
            "norm.bias": False,
        }
    )
    optimizer = AdamWConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    return Run(data=data, model=model, optimizer=optimizer, seed=job.seed, out=job.out / "nanogpt").but(
        {"trainer": {"schedule": {"kind": "cosine", "warmup": 100, "final": 0.1}, "clip": 1.0}}
    )


def timed(run: Run, seconds: float) -> list[tuple[float, float]]:
    """Train for about `seconds`; (seconds, held-out loss) at every evaluation.

    Seconds are steps times the median of one, so that what else the machine did meanwhile counts for neither side.
    """
    steps = int(seconds / _step_seconds(train(run.but({"out": f"{run.out}-probe", "trainer": {"steps": 24}}))))
    result = train(run.but({"trainer": {"steps": steps, "evaluate_every": max(1, steps // 40), "time_limit": None}}))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    step = _step_seconds(result)
    return [(r["step"] * step, r["held_out"]["loss"]) for r in result.log if "held_out" in r]


def _step_seconds(result: Result) -> float:
    """The median time of a step, leaving the first ones and evaluations out."""
    log = [r["seconds"] for r in result.log if "held_out" not in r][4:]
    return statistics.median(after - before for before, after in itertools.pairwise(log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--seconds", type=float, default=120.0, help="T, for nanoGPT's recipe")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    ratios = []
    for seed in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            job = Quickstart(data=options.data, seed=seed, out=Path(folder))
            size = size_up(options.seconds / 2, VOCAB)
            data = TextData(sources=(Source(path=options.data),), tokenizer=TrainBPE(vocab=VOCAB), context=size.context)
            ours = pretraining(job, data, size)
            same = {name: getattr(ours.trainer, name) for name in ("batch", "precision", "compile", "evaluate_batches")}
            theirs = nanogpt(job, data, size).but({"trainer": same})
            if seed == 0:
                print(f"nanoGPT {count_parameters(theirs.model):,} parameters, ours {count_parameters(ours.model):,}")
            target_time, target = timed(theirs, options.seconds)[-1]
            curve = timed(ours, options.seconds / 2)
            passed = next((seconds for seconds, loss in curve if loss <= target), None)
            reached = f"passed it after {passed:.0f} s" if passed else "did not reach it"
            reached += f" and ended at {curve[-1][1]:.3f} after {curve[-1][0]:.0f} s"
            print(f"seed {seed}: nanoGPT ended at {target:.3f} nats after {target_time:.0f} s; ours {reached}")
            if passed:
                ratios.append(target_time / passed)
    if ratios:
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"time to its loss, nanoGPT / ours: median {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
