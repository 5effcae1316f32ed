"""Corrupted text and what restores it, as training data for encoder-decoder models: the documents of documents.py,
corrupted by the loader.

Texts of one length are read: documents are cut, and short ones stand one behind the other in a row, as if they were
one text. The length is chosen so that what is left after the corruption fills the context.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.batch import Seq2SeqBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.prepared import Split
from onefold.data.text.corruption.infilling import Infilling
from onefold.data.text.corruption.prefix import Prefix
from onefold.data.text.corruption.sequences import Sequences, framed, stacked
from onefold.data.text.corruption.spans import Spans
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import LoadTokenizer, TextData, TrainBPE
from onefold.data.text.pairs.seq2seq import Examples, fit_seq2seq, seq2seq_batch
from onefold.data.text.plan import Plan, plan_evaluation
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, MASKS, T5_TOKENS

EVALUATION = 0  # seed of the noise that all evaluations have

NoiseConfig = Annotated[Spans | Infilling | Prefix, Slot()]


class DenoisingTextData(TextData):
    """Documents to restore: T5's spans, BART's infilling, or the rest of a text whose beginning is read."""

    kind: Literal["denoising"] = "denoising"  # pyright: ignore[reportIncompatibleVariableOverride]
    context: int = Field(default=512, ge=1)  # tokens that the encoder reads, with those that begin and end a text
    noise: NoiseConfig = Spans()
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] = TrainBPE(special=T5_TOKENS, sentinels=100)

    @model_validator(mode="after")
    def _has_tokens(self) -> Self:
        if isinstance(self.tokenizer, TrainBPE):
            text = None
            if isinstance(self.noise, Spans) and not self.tokenizer.sentinels:
                text = "noise of the kind spans needs data.tokenizer.sentinels, such as 100"
            elif isinstance(self.noise, Infilling) and not set(MASKS) & set(self.tokenizer.special):
                text = f"noise of the kind infilling needs a mask token in tokenizer.special: {list(ENCODER_TOKENS)}"
            if text:
                raise PydanticCustomError("noise", "{text}", {"text": text})
        return self

    def _open(self, folder: Path, shares: Sequence[float] | None) -> "DenoisingDataset":
        return DenoisingDataset(folder, self.context, shares, self.noise)


class DenoisingDataset(Dataset):
    """What `prepare` returns: rows of a corrupted text and what restores it.

    The noise of a row is a function of seed, epoch and the row's number in the epoch's plan, whatever the number of
    processes. In evaluations it is always the same.
    """

    batch = Seq2SeqBatch

    def __init__(self, folder: Path, context: int, shares: Sequence[float] | None, noise: NoiseConfig):
        """Raises UserError when the context is too short, or the tokenizer lacks what the noise needs."""
        super().__init__(folder, context, shares)
        self._before, self._after = self.tokenizer.prefix, self.tokenizer.suffix
        frame = len(self._before) + len(self._after)
        self.length = noise.room(context - frame)
        if self.length < 2:
            raise UserError(f"data.context={context} leaves no room for text: give {frame + 4} at least")
        self._noise = noise.build(self.tokenizer, self.length, self._pad)
        read, said = noise.widths(self.length)
        self._most = read + frame, said + frame

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that the loss does not tell: what is missing does not spell the text."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config, if it reads these tokens; with `grow`, one whose vocabulary has room for new tokens.

        Errors: UserError when it is no model of two texts, lacks room, or rows are longer than its context.
        """
        return fit_seq2seq(model, self.tokenizer, max(self._most), grow)

    def _lengths(self, split: Split) -> np.ndarray:
        return np.maximum(self._records[split].ragged("tokens").lengths - 2, 0)  # but for what begins and ends them

    def examples(self, split: Split, seed: int | None, epoch: int) -> Examples:
        """The rows of an epoch one by one, for mixtures; of the evaluation, where `seed` is None."""
        if seed is None:
            plan = plan_evaluation(self._lengths(split), self.length, 1)
        else:
            plan = self.plan(split, 1, seed, epoch)
        return Examples(plan.batches, partial(self._sides, split, seed, plan))

    def _gather(self, split: Split, seed: int | None = None) -> Callable[[Plan, slice], Seq2SeqBatch]:
        return partial(self._corrupted, split, seed)

    def _corrupted(self, split: Split, seed: int | None, plan: Plan, rows: slice) -> Seq2SeqBatch:
        read, said = self._sides(split, seed, plan, np.arange(rows.start, rows.stop))
        return seq2seq_batch(read, said, self.tokenizer.decoder_start, self._pad, self._most)

    def _sides(self, split: Split, seed: int | None, plan: Plan, rows: np.ndarray) -> tuple[Sequences, Sequences]:
        """(what is read, what is to be said) of these rows, Int64[B], of a plan; of an empty row nothing is to be."""
        tokens, counts = self._records[split].ragged("tokens"), np.diff(plan.first)[rows]
        before = np.concatenate(([0], np.cumsum(counts)))  # pieces, of each row
        pieces = plan.pieces.take(np.repeat(plan.first[rows] - before[:-1], counts) + np.arange(before[-1]))
        starts = np.concatenate(([0], np.cumsum(pieces.length)))  # of each piece among the tokens of all rows
        flat = tokens.gather(tokens.starts[pieces.document] + 1 + pieces.offset, pieces.length)
        texts = stacked(flat, np.diff(starts[before]), self._pad)
        borders = np.zeros(texts.tokens.shape, bool)
        borders[texts.real] = np.isin(np.arange(len(flat)), starts[1:] - 1)

        if seed is None:  # by the text that it begins with, whatever the size of a batch
            begins = np.append(pieces.document << 32 | pieces.offset, 0)[before[:-1]]
            draws = Draws(EVALUATION, 0, begins)
        else:
            draws = Draws(seed, plan.epoch, rows)
        read, said = (framed(s, self._before, self._after, self._pad) for s in self._noise(texts, borders, draws))
        return read, Sequences(said.tokens, np.where(texts.lengths > 0, said.lengths, 0))
