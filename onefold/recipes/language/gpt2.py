"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Claim: a plain left-to-right language model, trained on enough varied text, does tasks that it was never trained on when
they are put to it as text.

Deviations: WebText was never published, so `data` is yours; the paper prints neither learning rate nor steps, so those
here are the ones with which open reproductions reach its loss (6e-4 at batch 512 x 1024, cosine to a tenth). Byte-level
BPE of 50,257 tokens, as released, is trained on your data unless `tokenizer` names a folder or file that has one.
"""

from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.recipes import _miniature as miniature
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig


def recipe(data: str = "stdlib", size: str = "small", tokenizer: str | None = None) -> Run:
    """Sizes: small (124M), medium (355M), large (774M), xl (1.6B)."""
    return Run(
        data=TextData(
            sources=(Source(path=data),),
            context=1024,
            tokenizer=LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=50257),
        ),
        model=families.gpt2(size).but({"embed.dropout": 0.1, "block.dropout": 0.1, "block.mixer.dropout": 0.1}),
        optimizer=AdamWConfig(lr=6e-4),
        trainer=TrainerConfig(
            steps=100_000, batch=512, schedule=Cosine(warmup=2000), evaluate_every=1000, checkpoint_every=1000
        ),
        out="runs/gpt2",
    )


def tiny(data: str = "stdlib", tokenizer: str | None = None) -> Run:
    """A million parameters on 256 tokens of context: a minute or two on two cores."""
    published = recipe(data, tokenizer=tokenizer)
    return published.but(
        {
            "data.context": 256,
            **({} if tokenizer else {"data.tokenizer.vocab": 2048}),
            "model": TINY_SHAPE | {"vocab": published.model.vocab if tokenizer else 2048},
            "model.embed": {"dropout": 0.0, "position": {"context": 256}},
            "model.block": {"dropout": 0.0, "mixer": {"heads": 4, "dropout": 0.0}, "ffn": {"width": 512}},
            "optimizer.lr": 2e-3,
            **TINY_TRAINER,
        }
    )


TINY_SHAPE = {"width": 128, "depth": 4, "context": 256}
TINY_TRAINER = {
    "trainer": {
        "steps": 400,
        "batch": 16,
        "evaluate_every": 100,
        "evaluate_batches": 16,
        "checkpoint_every": 100,
    },
    "trainer.schedule.warmup": 0.05,
}


SIZES = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}


def check(report: Report) -> None:
    """Exact sizes; the cache changes nothing; a small one learns more than pairs, and more the more it has read."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.gpt2(size)), published)
    miniature.cache_is_exact(report, tiny().model)
    runs = miniature.learns(report, "gpt2", tiny())
    miniature.uses_its_context(report, runs)
