"""BART (Lewis et al. 2019, "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation,
Translation, and Comprehension", arXiv 1910.13461).

Claim: a bidirectional encoder and an autoregressive decoder that restore whole texts, their sentences out of order and
spans of them behind single masks, learn what both understanding and writing need.

Deviations: the 160 GB of text were never published as one, so `data` is yours; texts follow each other in a row without
a token between them. Spans are of tokens, where the authors' program counts words. Byte-level BPE of 50,265 tokens is
trained on your data unless `tokenizer` names a folder or file of one. The paper leaves open the learning rate: ours is
RoBERTa's, whose batch and steps it has.
"""

from onefold.data.text.corruption.infilling import Infilling
from onefold.data.text.denoising import DenoisingTextData
from onefold.data.text.documents import LoadTokenizer, Source, TrainBPE
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.models import seq2seq_families as families
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.encoders.roberta import RATES
from onefold.recipes.seq2seq import _seq2seq as seq2seq
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "stdlib", size: str = "large", tokenizer: str | None = None) -> Run:
    """Sizes: base (139M), large (406M)."""
    model = families.bart(size)
    rate, warmup = RATES[size]
    return Run(
        data=DenoisingTextData(
            sources=(Source(path=data),),
            noise=Infilling(),
            tokenizer=LoadTokenizer(path=tokenizer)
            if tokenizer
            else TrainBPE(vocab=model.vocab, special=ENCODER_TOKENS),
        ),
        model=model,
        optimizer=AdamWConfig(lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        trainer=TrainerConfig(
            steps=500_000,
            batch=8000,
            clip=None,
            schedule=Linear(warmup=warmup),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/bart",
    )


def tiny(data: str = "stdlib", tokenizer: str | None = None) -> Run:
    """A million parameters on 128 tokens: two minutes on two cores."""
    run = recipe(data, "base", tokenizer)
    vocab = run.model.vocab if tokenizer else seq2seq.VOCAB
    changes = {
        "model": seq2seq.shrunk(run.model, vocab, 128, 128).to_dict(),
        "data.context": 128,
        "optimizer.lr": 1e-3,
        "trainer": {"steps": 600, "batch": 16, "clip": 1.0, "evaluate_every": 150, "checkpoint_every": 300},
        "trainer.schedule.warmup": 0.1,
    }
    return run.but(changes | ({} if tokenizer else {"data.tokenizer.vocab": vocab}))


STEPS = 700  # of a check
SIZES = {"base": 139_420_416, "large": 406_291_456}


def check(report: Report) -> None:
    """Exact sizes; gaps in text that was held out are filled better than by the most frequent token."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.bart(size)), published)
    vocab, context = 512, 32
    changes = {
        "model": seq2seq.shrunk(families.bart(), vocab, 64, context).to_dict(),
        "data": {"context": context, "held_out": seq2seq.HELD_OUT, "tokenizer": {"vocab": vocab}},
        "data.sources": [str(seq2seq.CORPUS)],
        "optimizer.lr": 3e-3,
    }
    results = encoders.seeded(encoders.briefly(tiny().but(changes), STEPS, 32), "bart")
    errors = [seq2seq.gap_errors(result) for result in results]
    ours, frequent, pairs = ([e[by] for e in errors] for by in ("model", "most frequent token", "pairs of tokens"))
    report.less("hidden tokens of files held out that are not guessed, against the most frequent token", ours, frequent)
    report.less("the same, against the most frequent follower of the token before", ours, pairs)
    report.note("held-out loss of whole texts", [encoders.last(result, "loss") for result in results])
