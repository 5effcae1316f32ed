"""RoBERTa (Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv 1907.11692).

Claim: BERT was trained too little. With masks that change, full sentences without next-sentence prediction, larger
batches and more text, a model that fills in hidden tokens learns more that fine-tuning can use.

Deviations: the 160 GB of text were never published as one, so `data` is yours. Documents that share a row do not see
each other. Byte-level BPE of 50,265 tokens is trained on your data unless `tokenizer` names a folder or file of one.

A classifier begins with it: `onefold train text_classifier data=rows.csv start=runs/roberta`.
"""

from onefold.data.text.documents import LoadTokenizer, Source, TrainBPE
from onefold.data.text.masked import MaskedTextData
from onefold.data.text.tokenizer import ENCODER_TOKENS
from onefold.models import encoder_families as families
from onefold.models.transformer import count_parameters
from onefold.recipes import _encoders as encoders
from onefold.study.check import Report
from onefold.training.optim import AdamWConfig
from onefold.training.run import Run
from onefold.training.schedule import Linear
from onefold.training.trainer import TrainerConfig

RATES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}  # learning rate and steps of warm-up: table 9


def recipe(data: str = "stdlib", size: str = "base", tokenizer: str | None = None) -> Run:
    """Sizes: base (125M), large (355M)."""
    model = families.roberta(size)
    rate, warmup = RATES[size]
    return Run(
        data=MaskedTextData(
            sources=(Source(path=data),),
            tokenizer=LoadTokenizer(path=tokenizer)
            if tokenizer
            else TrainBPE(vocab=model.vocab, special=ENCODER_TOKENS),
        ),
        model=model,
        optimizer=AdamWConfig(lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        trainer=TrainerConfig(
            steps=500_000,
            batch=8192,
            clip=None,
            schedule=Linear(warmup=warmup),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/roberta",
    )


def tiny(data: str = "stdlib", tokenizer: str | None = None) -> Run:
    """A million parameters on 128 tokens: three minutes on two cores."""
    return encoders.small(recipe(data, tokenizer=tokenizer), tokenizer)


SIZES = {"base": 124_697_433, "large": 355_412_057}


def check(report: Report) -> None:
    """Exact sizes; hidden tokens are found better than by counting; masks that change; fine-tuning with few labels."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.roberta(size)), published)
    encoders.fills_in(report, encoders.pretrained())
    encoders.masks_that_change(report)
    encoders.fine_tuning_saves_labels(report)
