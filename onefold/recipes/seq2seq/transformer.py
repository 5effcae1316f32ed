"""The Transformer (Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762): from one text to another.

    onefold train transformer data=train.de,train.en validation=val.de,val.en out=runs/de-en
    onefold average runs/de-en && onefold translate runs/de-en/averaged test.de --out test.en

Claim: attention alone, without recurrence, translates better than what there was, after a fraction of the training.

Deviations: WMT 2014 is not at hand, so `data` is yours: two aligned files, or a table of pairs. The default is
synthetic, a made-up grammar whose translations say nothing about real languages. BPE is of bytes instead of characters.
Norms stand after the sums, as in the paper; the code that was released with it put them before the branches later on.
"""

from onefold.data.text.documents import TrainBPE
from onefold.data.text.pairs.synthetic import SYNTHETIC
from onefold.data.text.pairs.text_pairs import TextPairsData
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS
from onefold.models import seq2seq_families as families
from onefold.models.transformer import count_parameters
from onefold.objectives.language import NextToken
from onefold.recipes.seq2seq import _translation as translation
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import InverseSqrt
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

WARMUP = 4000
STEPS = {"base": 100_000, "big": 300_000}
SAVED = {"base": 1_400, "big": 600}  # steps in ten minutes on the paper's machine, after which it saved…
AVERAGED = {"base": 5, "big": 20}  # …and of the last ones of which it took the mean
ROWS = 98  # of 256 tokens: batches of 25,000 tokens a side


def recipe(data: str = SYNTHETIC, size: str = "base", validation: str | None = None) -> Run:
    """Sizes: base (65M parameters in the paper), big (213M). data and validation: SOURCE,TARGET files, or a table."""
    model = families.transformer(size)
    return Run(
        data=TextPairsData(
            path=data, validation=validation, context=256, tokenizer=TrainBPE(vocab=model.vocab, special=T5_TOKENS)
        ),
        model=model,
        objective=NextToken(smoothing=0.1),
        optimizer=AdamWConfig(lr=(model.width * WARMUP) ** -0.5, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
        trainer=TrainerConfig(
            steps=STEPS[size],
            batch=ROWS,
            schedule=InverseSqrt(warmup=WARMUP),
            clip=None,
            evaluate_every=SAVED[size],
            checkpoint_every=SAVED[size],
            keep=AVERAGED[size],
        ),
        out="runs/transformer",
    )


def tiny(data: str = SYNTHETIC, validation: str | None = None) -> Run:
    """Three million parameters and short sentences: some minutes on two cores."""
    return translation.small(recipe(data, validation=validation))


SIZES = {"base": 63_045_632, "big": 214_171_648}
PAPER = {"base": "65M", "big": "213M"}


def check(report: Report) -> None:
    """Exact sizes and rates; better than LSTMs of its size in equal time; averages and beams help."""
    for size, parameters in SIZES.items():
        run = recipe(size=size)
        report.equal(f"parameters, {size}", count_parameters(run.model), parameters)
        report.published(f"parameters, {size}", PAPER[size], parameters)
    run = recipe()
    for step in (1, 4000, 100_000):
        rate = run.optimizer.lr * run.trainer.schedule.multiplier(step - 1, run.trainer.steps)
        formula = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        report.close(f"learning rate of step {step:,}", rate, formula, 1e-12)
    translation.compare(report, tiny)
    report.published("BLEU on WMT 2014 English to German, as the paper counted it", 28.4)
    report.published("BLEU on WMT 2014 English to French, as the paper counted it", 41.8)
