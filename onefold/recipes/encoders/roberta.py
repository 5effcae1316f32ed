"""RoBERTa (Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv 1907.11692).

Claim: BERT was trained too little. With masks that change, full sentences without next-sentence prediction, larger
batches and more text, a model that fills in hidden tokens learns more that fine-tuning can use.

Deviations: the 160 GB of text were never published as one, so `data` is yours. Documents that share a row do not see
each other. Byte-level BPE of 50,265 tokens is trained on your data unless `tokenizer` names a folder or file of one.

Fine-tuning, with the settings of table 10 but for the number of steps, which your rows decide:

    onefold train roberta task=sequence data=reviews.csv start=runs/roberta      # a class for each text
    onefold train roberta task=token data=names.conll start=path/to/roberta      # a tag for each word
    onefold train roberta task=span data=train-v2.0.json start=path/to/roberta   # where answers stand
    onefold train roberta task=regression data=ratings.tsv start=runs/roberta    # a number
"""

from onefold.data.text.documents import LoadTokenizer, Source, TrainBPE
from onefold.data.text.masked import MaskedTextData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.models import encoder_families as families
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

RATES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}  # learning rate and steps of warm-up: table 9


def recipe(
    data: str = "stdlib",
    size: str = "base",
    tokenizer: str | None = None,
    task: str | None = None,
    start: str | None = None,
    context: int | None = None,
) -> Run:
    """Sizes: base (125M), large (355M). task: sequence, token, span or regression, to fine-tune the model at `start`.

    context: tokens of a text at most, or of a window; None: 128, for answers 384.
    """
    if task:
        return fine_tuning(data, task, encoders.started(task, start), context, "runs/roberta-" + task)
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
        start=start,
        out="runs/roberta",
    )


def fine_tuning(data: str, task: str, start: str | None, context: int | None, out: str) -> Run:
    """Table 10, which others take, too; answers are learned with its column for SQuAD."""
    rate, decay = (1.5e-5, 0.01) if task == "span" else (2e-5, 0.1)
    optimizer = AdamWConfig(lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=decay)
    run = encoders.fine_tuning(task, data, start, context, optimizer, out)
    return run.but({"trainer.batch": 48}) if task == "span" else run


def tiny(
    data: str = "stdlib",
    tokenizer: str | None = None,
    task: str | None = None,
    start: str | None = None,
    context: int | None = None,
) -> Run:
    """A million parameters on 128 tokens: three minutes on two cores. With a task, a minute or two from such a one."""
    run = recipe(data, tokenizer=tokenizer, task=task, start=start, context=context or (128 if task else None))
    return encoders.in_minutes(run) if task else encoders.small(run, tokenizer)


SIZES = {"base": 124_697_433, "large": 355_412_057}


def check(report: Report) -> None:
    """Exact sizes; hidden tokens are found better than by counting; masks that change; fine-tuning with few labels."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.roberta(size)), published)
    encoders.fills_in(report, encoders.pretrained())
    encoders.masks_that_change(report)
    encoders.fine_tuning_saves_labels(report)
