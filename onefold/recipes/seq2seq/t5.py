"""T5 (Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
arXiv 1910.10683).

Claim: one encoder-decoder, one loss: to restore gaps in text is learned first, and every other task is text to text,
told apart by its first words.

Deviations: `data` is yours instead of C4; texts follow each other in a row without a token between them, as theirs do.
The tokenizer, byte-level BPE instead of SentencePiece, is trained on it unless `tokenizer` names a folder or file of
one.

    onefold train t5 data=notes/
    onefold train t5 data=notes/ tasks=summarize=news.jsonl,answer=questions.tsv    # "summarize: …", and gaps
    onefold train t5 data=notes/ prefix_lm=true     # the paper's other shape: one stack reads the text and goes on
"""

from onefold.core.errors import UserError
from onefold.data.text.denoising import DenoisingDataset, DenoisingTextData
from onefold.data.text.documents import LoadTokenizer, Source, TrainBPE
from onefold.data.text.pairs.mixture import MixtureData, Part
from onefold.data.text.pairs.text_pairs import TextPairsData
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS
from onefold.models import seq2seq_families as families
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.seq2seq import _seq2seq as seq2seq
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdafactorConfig, AdamWConfig
from onefold.training.optimizers.schedule import InverseSqrt, Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

SENTINELS = 100
LIMIT = 2**19  # rows of a task that count for its share (section 3.5.2)


def recipe(
    data: str = "stdlib",
    tasks: str = "",
    size: str = "base",
    gated: bool = False,
    prefix_lm: bool = False,
    tokenizer: str | None = None,
) -> Run:
    """tasks: NAME=TABLE,…: columns input and target, learned beside the gaps as "NAME: input".

    Sizes: small (60M), base (223M), large (738M), 3b, 11b; gated: version 1.1 (small, base, large, xl, xxl).
    prefix_lm: without the encoder (section 3.2.2).
    """
    model = families.t5_v11(size) if gated else families.t5(size)
    trained = TrainBPE(vocab=32_100, special=T5_TOKENS, sentinels=SENTINELS)
    return Run(
        data=told_as_text(data, tasks, 512, LoadTokenizer(path=tokenizer) if tokenizer else trained),
        model=families.one_stack(model) if prefix_lm else model,
        optimizer=AdafactorConfig(lr=0.01),
        trainer=TrainerConfig(
            steps=2**19,
            batch=128,
            clip=None,
            schedule=InverseSqrt(warmup=10_000, flat=True),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/t5",
    )


def tiny(data: str = "stdlib", tasks: str = "", prefix_lm: bool = False, tokenizer: str | None = None) -> Run:
    """A million parameters (without the encoder 0.7 million) on 128 tokens: two minutes on two cores."""
    run = recipe(data, size="small", tokenizer=tokenizer)
    vocab = run.model.vocab if tokenizer else seq2seq.VOCAB
    trained = TrainBPE(vocab=vocab, special=T5_TOKENS, sentinels=20)
    model = seq2seq.shrunk(run.model, vocab, 128, 128)
    changes = {
        "model": (families.one_stack(model) if prefix_lm else model).to_dict(),
        "data": told_as_text(data, tasks, 128, run.data.tokenizer if tokenizer else trained).to_dict(),
        "optimizer": AdamWConfig(lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01).to_dict(),
        "trainer": {"steps": 600, "batch": 32, "clip": 1.0, "evaluate_every": 150, "checkpoint_every": 300},
        "trainer.schedule": Linear(warmup=0.1).to_dict(),
    }
    return run.but(changes)


def told_as_text(
    data: str, tasks: str, context: int, tokenizer: TrainBPE | LoadTokenizer
) -> DenoisingTextData | MixtureData:
    """Gaps in `data`, and the tasks, each in the share that its rows have of all, at most LIMIT of a task's.

    Errors: UserError when a task is not NAME=TABLE.
    """
    gaps = DenoisingTextData(sources=(Source(path=data),), context=context, tokenizer=tokenizer)
    parts = [Part(data=gaps)]
    for task in tasks.split(",") if tasks else ():
        name, _, table = task.partition("=")
        if not name or not table:
            raise UserError(f"tasks={tasks}: a task is NAME=TABLE, as in summarize=news.jsonl, and {task!r} is not")
        parts.append(Part(data=TextPairsData(path=(table,), prefix=f"{name}: ", context=context)))
    return MixtureData(parts=tuple(parts), cap=LIMIT) if tasks else gaps


def several_tasks(prefix_lm: bool = False) -> Run:
    """Gaps in text, and four tasks told as text, in equal shares."""
    vocab, context = 1024, 24
    read = TrainBPE(vocab=vocab, special=T5_TOKENS, sentinels=10)
    gaps = DenoisingTextData(sources=str(seq2seq.CORPUS), context=context, held_out=seq2seq.HELD_OUT, tokenizer=read)
    parts = [Part(data=gaps, weight=1.0)]
    for name, (learned, tested) in seq2seq.tables().items():
        pairs = TextPairsData(path=(str(learned),), validation=(str(tested),), prefix=f"{name}: ", context=context)
        parts.append(Part(data=pairs, weight=1.0))
    model = seq2seq.shrunk(families.t5(), vocab, 64, context)
    model = families.one_stack(model) if prefix_lm else model
    run = tiny().but({"model": model.to_dict(), "optimizer.lr": 4e-3})
    return run.but({"data": MixtureData(parts=tuple(parts)).to_dict()})


STEPS = 1000  # of a check
SIZES = {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096}
GATED_SIZES = {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080}


def check(report: Report) -> None:
    """Exact sizes; one model fills gaps better than counting does, and does several tasks that are told as text.

    Told: how the same does without an encoder, as a prefix language model.
    """
    for build, sizes, version in ((families.t5, SIZES, ""), (families.t5_v11, GATED_SIZES, " of version 1.1")):
        for size, published in sizes.items():
            report.equal(f"parameters, {size}{version}", count_parameters(build(size)), published)
    report.equal("tokens of a text of which 512 are read, and of what is said", *_lengths())
    results = encoders.seeded(encoders.briefly(several_tasks(), STEPS, 64), "t5")
    gaps = results[0].run.data.prepare(results[0].out / "data", keep=True).parts[0]
    losses = [seq2seq.span_losses(result, gaps) for result in results]
    report.less("nats for a token in a gap on files held out, against counts of tokens", *map(list, zip(*losses)))
    for name in seq2seq.TASKS:
        errors = [1 - seq2seq.exact_matches(result, name) for result in results]
        report.less(
            f"held-out error of the task {name}, against always the same answer", errors, 1 - seq2seq.guessed(name)
        )
    without_an_encoder(report, gaps)


def without_an_encoder(report: Report, gaps: DenoisingDataset) -> None:
    """The paper's other shape (section 3.2.2), of half as many layers, which is told only."""
    results = encoders.seeded(encoders.briefly(several_tasks(prefix_lm=True), STEPS, 64), "t5/prefix_lm")
    report.note("parameters of the check's model", count_parameters(several_tasks().model))
    report.note("parameters without its encoder", count_parameters(results[0].run.model))
    losses = [seq2seq.span_losses(result, gaps)[0] for result in results]
    report.note("nats for a token in a gap, without an encoder", losses)
    for name in seq2seq.TASKS:
        errors = [1 - seq2seq.exact_matches(result, name) for result in results]
        report.note(f"held-out error of the task {name}, without an encoder", errors)


def _lengths() -> tuple[tuple[int, int], tuple[int, int]]:
    """Ours and those of the paper, section 3.1.4 and its code: 568 tokens become 512 and 114."""
    spans = DenoisingTextData().noise
    room = spans.room(511)
    return (room, spans.widths(room)[1] + 1), (568, 114)
