"""A file of texts in, what a model writes about each of them out; and how good that is, as sacreBLEU measures it."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.sources import stamp
from onefold.data.text.pairs.aligned import read_lines
from onefold.infer.evaluation.evaluate import Score, evaluate
from onefold.infer.generation.sampling import Sampling
from onefold.infer.seq2seq import Seq2SeqModel

# How the first Transformer was judged: four beams, GNMT's length penalty of 0.6 (arXiv 1706.03762, section 6.1).
BEAMS = {"beams": 4, "length_penalty": 0.6, "length_norm": "gnmt"}
BATCH = 32  # texts at once
SORTED_TOGETHER = 16  # batches that are sorted by length together, so that little is padded
DRAWS = 1000  # resamplings of the test set, for intervals


def as_translator(model: Any, name: str | Path) -> Seq2SeqModel:
    """`model`, which has to read one text and write another. Raises UserError otherwise."""
    if not isinstance(model, Seq2SeqModel):
        raise UserError(f"{name} does not read one text and write another: that takes an encoder-decoder (T5, Marian…)")
    return model


def translate(model: Seq2SeqModel, texts: Sequence[str], batch: int = BATCH, **options: Any) -> Iterator[str]:
    """What `model` writes about each text, in order, on one line; nothing about a text of blanks.

    options: fields of Sampling beside BEAMS. Texts are sorted by length within pools, which bounds memory, too.
    """
    options = BEAMS | options
    for start in range(0, len(texts), batch * SORTED_TOGETHER):
        pool = texts[start : start + batch * SORTED_TOGETHER]
        order = sorted((i for i, text in enumerate(pool) if text.strip()), key=lambda i: -len(pool[i]))
        written = [""] * len(pool)
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            for i, text in zip(some, model.generate([pool[i] for i in some], **options)):
                written[i] = " ".join(text.split())
        yield from written


def translate_file(model: Seq2SeqModel, path: Path, out: Path, batch: int = BATCH, **options: Any) -> None:
    """Write the translation of every line of `path` into `out`, line by line.

    Until it is done it lies beside `out` as a file of another name, and the same command goes on there after an
    interruption. Raises UserError when a file cannot be read or written, or `out` is the source.
    """
    if batch < 1:
        raise UserError(f"batch must be at least 1, not {batch}")
    Sampling.from_dict(BEAMS | options)  # mistakes are told before anything is done
    if out.resolve() == path.resolve():
        raise UserError(f"the translation would overwrite its source {path}; give another --out")
    lines = list(read_lines(path))
    asked = [model.config.to_dict(), dict(model.card), stamp(path), BEAMS | options, batch]
    digest = hashlib.blake2b(json.dumps(asked, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
    part = out.with_name(f".{out.name}.{digest}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        done = _whole_lines(part)
        if done:
            say(f"going on after {done:,} of {len(lines):,} lines")
        with part.open("a", encoding="utf-8") as file, Progress("translating", len(lines), "lines", start=done) as bar:
            for text in translate(model, lines[done:], batch, **options):
                print(text, file=file, flush=True)
                bar.update()
        part.replace(out)
    except OSError as error:
        raise UserError(f"could not write {out}: {error.strerror}") from None
    say(f"{len(lines):,} lines: {out}")


@dataclass(frozen=True)
class Bleu:
    """A metric of sacreBLEU on a test set: its value, a 95% interval, and the signature to give with it."""

    name: str
    value: float
    low: float
    high: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def sacrebleu_scores(said: Sequence[str], references: Sequence[str], tokenize: str | None = None) -> list[Bleu]:
    """BLEU and chrF2 of these texts against one reference each, by sacreBLEU (Post 2018, arXiv 1804.08771).

    tokenize: sacreBLEU's tokenizer where it is not 13a ("zh", "ja-mecab", "flores200", …). Raises UserError when the
    package is missing.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise UserError("BLEU and chrF are measured by sacreBLEU: pip install 'onefold[translation]'") from None
    if len(said) != len(references) or not said:
        raise UserError(f"{len(said)} texts and {len(references)} references: there must be as many, and some")
    found = []
    for metric in (BLEU(tokenize=tokenize), CHRF()):
        try:
            score = metric.corpus_score(list(said), [list(references)], n_bootstrap=DRAWS)
        except TypeError:  # of few texts some draws score nothing, which its mean cannot take: no interval then
            score = metric.corpus_score(list(said), [list(references)], n_bootstrap=1)
        signature = metric.get_signature().format()
        told = json.loads(score.format(width=4, signature=signature, is_json=True))
        mean, half = told.get("confidence_mean", score.score), told.get("confidence_var", 0.0)  # of a score of 0: none
        found.append(Bleu(score.name, score.score, mean - half, mean + half, f"{score.name}|{signature}"))
    return found


@dataclass(frozen=True)
class Judged:
    """What a model made of pairs of texts."""

    loss: Score
    scores: list[Bleu]
    pairs: int

    def __str__(self) -> str:
        figures = ", ".join(map(str, self.scores))
        loss = f"loss {self.loss.loss:.4f}, perplexity {self.loss.perplexity:.2f} ({self.loss.tokens:,.0f} tokens)"
        return "\n".join((f"{figures}, {loss}", *(score.signature for score in self.scores)))


def judge_pairs(
    model: Seq2SeqModel, data: str, batch: int = BATCH, tokenize: str | None = None, rows: int = 8, **settings: Any
) -> Judged:
    """Translate the sources of pairs, compare with their targets, print the figures, and return them.

    data: SOURCE,TARGET files or a table, as TextPairsData reads them, with its settings source, target and prefix;
    others are those of Sampling. Pairs too long for the model count for BLEU, not for the loss.
    """
    from onefold.data.text.pairs.aligned import Count, read_pairs
    from onefold.data.text.pairs.text_pairs import TextPairsData

    named = {name: settings.pop(name) for name in ("source", "target", "prefix", "context") if name in settings}
    context = named.pop("context", model.config.context)
    Sampling.from_dict(BEAMS | settings)
    config = TextPairsData.from_dict({"path": data, "context": context, "held_out": 0.0, **named})
    with tempfile.TemporaryDirectory() as folder:
        dataset = config.prepare(Path(folder), model.tokenizer)
        loss = evaluate(model.network, dataset.evaluation("train", rows), 0)
    count = Count()
    pairs = list(read_pairs(config.path, config.source, config.target, count))
    with Progress("translating", len(pairs), "texts") as bar:
        said = list(bar.over(translate(model, [config.prefix + pair.source for pair in pairs], batch, **settings)))
    judged = Judged(loss, sacrebleu_scores(said, [pair.target for pair in pairs], tokenize), len(pairs))
    print(judged)
    return judged


def _whole_lines(part: Path) -> int:
    """How many lines of an earlier time are whole; what follows them is cut off."""
    if not part.is_file():
        return 0
    content = part.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with part.open("r+b") as file:
            file.truncate(whole)
    return content.count(b"\n")
