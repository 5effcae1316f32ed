"""Pythia (Biderman et al. 2023, arXiv 2304.01373).

Claim: a suite of models that saw exactly the same data in exactly the same order, with 154 checkpoints each, lets one
ask how what a model knows comes about.

Deviations: the Pile cannot be had here, so `data` is yours. Sizes, batch, schedule and checkpoints are the published
ones; the learning rate of 1B is the README's 3e-4 (its config file says 2.5e-4).
"""

from onefold.core.errors import UserError
from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.recipes import _miniature as miniature
from onefold.recipes.language.gpt2 import TINY_SHAPE, TINY_TRAINER
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.state import in_history
from onefold.training.trainer import TrainerConfig

LEARNING_RATE = {
    "14m": 1e-3,
    "31m": 1e-3,
    "70m": 1e-3,
    "160m": 6e-4,
    "410m": 3e-4,
    "1b": 3e-4,
    "1.4b": 2e-4,
    "2.8b": 1.6e-4,
    "6.9b": 1.2e-4,
    "12b": 1.2e-4,
}


def recipe(data: str = "stdlib", size: str = "160m", tokenizer: str | None = None) -> Run:
    """Sizes: 14m, 31m, 70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b, 12b."""
    model = families.pythia(size)
    if size not in LEARNING_RATE:
        raise UserError(f"Pythia has no published learning rate for {size}")
    return Run(
        data=TextData(
            sources=(Source(path=data),),
            context=2048,
            tokenizer=LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=50254),
        ),
        model=model,
        optimizer=AdamWConfig(lr=LEARNING_RATE[size], betas=(0.9, 0.95), weight_decay=0.1),
        trainer=TrainerConfig(
            steps=143_000,
            batch=1024,  # rows of 2048 tokens: 2,097,152 tokens
            schedule=Cosine(warmup=0.01),
            clip=1.0,
            checkpoint_every=1000,
            history=1000,
        ),
        out="runs/pythia",
    )


def tiny(data: str = "stdlib") -> Run:
    """A million parameters, checkpoints at 0, 1, 2, 4, … 64, then every 64 steps."""
    return recipe(data, "14m").but(
        {
            "data": {"context": 256, "tokenizer": {"vocab": 2048}},
            "model": TINY_SHAPE | {"vocab": 2048, "tied": True},
            "model.block": {"mixer": {"heads": 4}, "ffn": {"width": 512}},
            "optimizer.lr": 2e-3,
            **TINY_TRAINER,
            "trainer.history": 64,
        }
    )


TOTALS = {
    "14m": 14_067_712,
    "31m": 30_494_720,
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}
NON_EMBEDDING = {
    "14m": 1_189_888,
    "31m": 4_739_072,
    "70m": 18_915_328,
    "160m": 85_056_000,
    "410m": 302_311_424,
    "1b": 805_736_448,
    "1.4b": 1_208_602_624,
    "2.8b": 2_517_652_480,
    "6.9b": 6_444_163_072,
    "12b": 11_327_027_200,
}


def check(report: Report) -> None:
    """Exact sizes with and without embeddings; 154 checkpoints; the same data in the same order; it learns."""
    for size, total in TOTALS.items():
        config = families.pythia(size)
        report.equal(f"parameters, {size}", count_parameters(config), total)
        embeddings = 2 * config.vocab * config.width
        report.equal(f"without embeddings, {size}", count_parameters(config) - embeddings, NON_EMBEDDING[size])
    trainer = recipe().trainer
    report.equal("checkpoints", sum(in_history(s, trainer.history) for s in range(trainer.steps + 1)), 154)
    report.equal("tokens in a batch", trainer.batch * recipe().data.context, 2_097_152)
    miniature.cache_is_exact(report, tiny().model)
    runs = miniature.learns(report, "pythia", tiny())
    same_order(report, runs[0].run)


def same_order(report: Report, run: Run) -> None:
    """A second reader, begun in the middle, sees the very batches that the first one saw."""
    data = run.data.prepare(run.out / "data")
    with data.loader("train", run.trainer.batch, run.seed) as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state = loader.state()
        first = [next(batches).tokens for _ in range(5)]
    with data.loader("train", run.trainer.batch, run.seed, state=state) as again:
        second = [batch.tokens for batch, _ in zip(again, range(5), strict=False)]
    equal = all(bool((a == b).all()) for a, b in zip(first, second, strict=True))
    report.equal("batches of a run resumed in the middle are the same", equal, True)
