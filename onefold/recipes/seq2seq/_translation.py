"""What the check of the first Transformer asks, on pairs of texts that take a minute to learn."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from onefold.core.config import Config
from onefold.infer.evaluation.alignment import align
from onefold.infer.evaluation.evaluate import evaluate
from onefold.infer.model import load
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.infer.translate import sacrebleu_scores, translate
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.models.transformer import count_parameters
from onefold.study.check import Report, whole
from onefold.study.pages.translations import alignment_chart
from onefold.training.average import average_checkpoints
from onefold.training.run import Result, Run, train

SEEDS = (0, 1, 2)
PAIRS = "ONEFOLD_PAIRS"  # SOURCE,TARGET files (or a table) to check on instead of synthetic pairs
STEPS, ROWS = 1500, 8
OWN_STEPS, OWN_ROWS = 4000, 16  # on real text, where attention takes longer to find its places
LOOK_EVERY = 100
SAVE_EVERY = 25  # of the last five the mean is taken
TRANSLATED = 150  # held-out pairs
GREEDY = {"beams": 1}
RATES = {"Transformer": 3e-3, "LSTM": 1e-2, "LSTM with attention": 1e-2}  # the best of some, for each


def small(run: Run) -> Run:
    """The run with about three million parameters on short sentences."""
    return run.but(
        {
            **_shape(width=128, vocab=4096, depth=3),
            "data.context": 128,
            "optimizer.lr": 2e-3,
            "trainer": {
                "steps": 3000,
                "batch": 8,
                "clip": 1.0,
                "evaluate_every": 250,
                "checkpoint_every": 250,
                "keep": 5,
            },
            "trainer.schedule.warmup": 400,
        }
    )


def _shape(width: int, vocab: int, depth: int) -> dict[str, Any]:
    attention = {"heads": 4, "dropout": 0.0}
    sides = {
        f"model.{side}.{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"depth": depth, "block.mixer": attention, "block.ffn.width": 4 * width}.items()
    }
    model = {"width": width, "vocab": vocab, "context": 128, "decoder.block.cross": attention}
    return {"data.tokenizer.vocab": vocab, **{f"model.{name}": value for name, value in model.items()}, **sides}


def compare(report: Report, tiny: Callable[..., Run]) -> None:
    """Trains the Transformer and LSTMs of its size, and says what averaging, beams and attention are worth."""
    pairs = os.environ.get(PAIRS)
    steps, rows = (OWN_STEPS, OWN_ROWS) if pairs else (STEPS, ROWS)
    run = (tiny(pairs) if pairs else tiny()).but(
        {
            **_shape(width=64, vocab=1024, depth=2),
            "data.context": 64,
            "trainer": {"steps": steps, "batch": rows, "evaluate_every": LOOK_EVERY, "checkpoint_every": SAVE_EVERY},
            "trainer.evaluate_batches": 32,
            "trainer.schedule.warmup": 200,
        }
    )
    models = {
        "Transformer": run.model,
        "LSTM": _lstm_of(run.model, attention=False),
        "LSTM with attention": _lstm_of(run.model, attention=True),
    }
    report.note("pairs of texts", pairs or "synthetic")
    for name, model in models.items():
        report.note(f"parameters, {name}", count_parameters(model))
    results = {name: _seeded(run, name, model) for name, model in models.items()}
    seconds = min(result.log[-1]["seconds"] for some in results.values() for result in some)
    losses = {name: [_loss_within(result, seconds) for result in some] for name, some in results.items()}
    asked = [_losses(result) for result in results["Transformer"]]
    own, others = zip(*asked)
    report.less("held-out loss given the source, against that given another pair's", list(own), list(others))
    if not pairs:  # of the user's own files nobody knows whether minutes are enough for attention to find its places
        ours, lstm = losses["Transformer"], losses["LSTM"]
        told = f"held-out loss after {seconds:.0f} s, against LSTMs without attention of as many parameters"
        report.less(told, ours, lstm)
    for name, found in losses.items():
        report.note(f"held-out loss after {seconds:.0f} s, {name}", found)
    for name in ("LSTM", "LSTM with attention"):
        report.note(f"BLEU, {name}, greedy", [_bleu(load(r.checkpoint), _held_out(r), GREEDY) for r in results[name]])
    search(report, results["Transformer"])


def search(report: Report, results: list[Result]) -> None:
    """BLEU of the last weights and of the mean of five checkpoints, greedily and with four beams."""
    scores: dict[tuple[str, str], list[float]] = {}
    for result in results:
        pairs = _held_out(result)
        last, mean = load(result.checkpoint), load(average_checkpoints([result.out]))
        for weights, model in (("last weights", last), ("mean of five checkpoints", mean)):
            for way, options in (("greedy", GREEDY), ("four beams", {})):
                scores.setdefault((weights, way), []).append(_bleu(model, pairs, options))
    for (weights, way), found in scores.items():
        report.note(f"BLEU, {weights}, {way}", found)
    lost = {name: [100 - score for score in found] for name, found in scores.items()}
    best, plain = lost["mean of five checkpoints", "four beams"], lost["last weights", "greedy"]
    report.less("100 - BLEU of the mean with four beams, against the last weights, greedy", best, plain)
    source = pairs[0][0]
    if said := next(translate(mean, [source])):
        report.chart("attention", alignment_chart(align(mean.network, mean.tokenizer, source, said)))


def _held_out(result: Result) -> list[tuple[str, str]]:
    dataset = result.run.data.prepare(result.out / "data", keep=True)
    return list(islice(dataset.texts("held_out"), TRANSLATED))


def _bleu(model: Seq2SeqModel, pairs: list[tuple[str, str]], options: dict[str, Any]) -> float:
    said = list(translate(model, [source for source, _ in pairs], max_new_tokens=64, **options))
    return sacrebleu_scores(said, [target for _, target in pairs])[0].value


def _lstm_of(model: Config, attention: bool) -> RecurrentSeq2SeqConfig:
    """LSTMs, a layer a side, with as many parameters as `model`, or hardly fewer."""
    shape = {"vocab": model.vocab, "context": model.context, "depth": 1, "attention": attention}
    lstm = RecurrentSeq2SeqConfig(**shape, width=2, dropout=0.1)
    while count_parameters(larger := lstm.but({"width": lstm.width + 2})) <= count_parameters(model):
        lstm = larger
    return lstm


def _seeded(run: Run, name: str, model: Config) -> list[Result]:
    home = Path("runs/check/transformer") / run.data.digest() / name.replace(" ", "-")
    run = run.but({"model": model.to_dict(), "optimizer.lr": RATES[name]})
    return [whole(train(run.but({"seed": seed, "out": str(home / str(seed))}))) for seed in SEEDS]


def _losses(result: Result) -> tuple[float, float]:
    """Held-out loss given each target's own source, and given the source of another pair."""
    network = load(result.checkpoint).network
    batches = list(result.run.data.prepare(result.out / "data", keep=True).evaluation("held_out", 4))
    mixed = (replace(b, source=b.source.roll(1, 0), source_segments=_rolled(b.source_segments)) for b in batches)
    own, others = (evaluate(network, some, 0).loss for some in (batches, mixed))
    return own, others


def _rolled(segments: Tensor | None) -> Tensor | None:
    return None if segments is None else segments.roll(1, 0)


def _loss_within(result: Result, seconds: float) -> float:
    """Held-out loss of the last evaluation up to then."""
    return [r["held_out"]["loss"] for r in result.log if "held_out" in r and r["seconds"] <= seconds + 1e-9][-1]
