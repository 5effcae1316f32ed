"""BERT (Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv 1810.04805).

Claim: a transformer that looks both ways, taught without labels to fill in hidden words and to say whether one passage
follows another, needs only a new last layer for most tasks of language.

Deviations: BooksCorpus is gone, so `data` is yours; a byte-level BPE of 30,522 tokens is trained on it instead of
WordPiece, unless `tokenizer` names a folder or file of one; all sequences have 512 tokens, where the paper begins with
128. As in the released data, each document has ten masks and ten ways in which it is paired.

Fine-tuning, with the settings of appendix A.3 but for the number of steps, which your rows decide:

    onefold train bert task=sequence data=reviews.csv start=path/to/bert   # or token, span, regression
"""

from onefold.data.text.documents import LoadTokenizer, Source, TrainBPE
from onefold.data.text.masked import MaskedTextData
from onefold.models import encoder_families as families
from onefold.models.transformer import count_parameters
from onefold.objectives.language import MaskedAndNext
from onefold.recipes.encoders import _encoders as encoders
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def recipe(
    data: str = "stdlib",
    size: str = "base",
    tokenizer: str | None = None,
    task: str | None = None,
    start: str | None = None,
    context: int | None = None,
) -> Run:
    """Sizes: base (110M), large (336M). task: sequence, token, span or regression, to fine-tune the model at `start`.

    context: tokens of a text at most, or of a window; None: 128, for answers 384.
    """
    if task:
        optimizer = AdamWConfig(lr=3e-5, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
        run = encoders.fine_tuning(task, data, encoders.started(task, start), context, optimizer, "runs/bert-" + task)
        return run.but({"trainer.schedule.warmup": 0.1})
    model = families.bert(size)
    trained = TrainBPE(vocab=model.vocab, special=SPECIAL)
    return Run(
        data=MaskedTextData(
            sources=(Source(path=data),),
            tokenizer=LoadTokenizer(path=tokenizer) if tokenizer else trained,
            next_sentence=True,
        ).but({"masking.masks": 10}),
        model=model,
        objective=MaskedAndNext(),
        optimizer=AdamWConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01),
        trainer=TrainerConfig(
            steps=1_000_000,
            batch=256,
            schedule=Linear(warmup=10_000),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        start=start,
        out="runs/bert",
    )


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


SIZES = {"base": 110_106_428, "large": 336_226_108}  # both heads counted


def check(report: Report) -> None:
    """Exact sizes; hidden tokens are found better than by counting; whether a passage follows, reported."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.bert(size)), published)
    results = encoders.seeded(encoders.trained_briefly(tiny(), max(1, encoders.STEPS // 2)), "bert")
    encoders.fills_in(report, results, figure="ce")
    report.note("held-out accuracy, whether the second passage follows", [encoders.accuracy(r) for r in results])
