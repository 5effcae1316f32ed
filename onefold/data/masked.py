"""Text of which some tokens are hidden, as training data for encoders: the documents of text.py, masked by the loader.

A document is cut into pieces, each of which stands between the tokens that begin and end a text, as it will when the
encoder is used; short ones are packed into one row, where attention stays inside a piece.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.batch import TokenBatch
from onefold.core.config import Slot
from onefold.data.ahead import to_tensor
from onefold.data.corruption.masking import Maskable, Masking, mask_tokens
from onefold.data.dataset import Dataset, Split
from onefold.data.layout import Layout
from onefold.data.plan import Plan
from onefold.data.text import LoadTokenizer, TextData, TrainBPE
from onefold.data.tokenizer import ENCODER_TOKENS, MASKS
from onefold.data.transforms.draws import Draws

EVALUATION = 0  # seed of the masks that all evaluations have
CHOICE, FATE = 1, 2  # streams of draws
TOGETHER = 16  # the number of predicted columns is a multiple of this: fewer different shapes


class MaskedTextData(TextData):
    """Documents of which hidden tokens are predicted, without next-sentence prediction (RoBERTa's full sentences)."""

    kind: Literal["masked_text"] = "masked_text"  # pyright: ignore[reportIncompatibleVariableOverride]
    context: int = Field(default=512, ge=3)  # with the tokens that begin and end a text
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] = TrainBPE(special=ENCODER_TOKENS)
    masking: Masking = Masking()

    @model_validator(mode="after")
    def _has_mask(self) -> Self:
        if isinstance(self.tokenizer, TrainBPE) and not set(MASKS) & set(self.tokenizer.special):
            text = f"tokenizer.special needs a mask token, as in {list(ENCODER_TOKENS)}"
            raise PydanticCustomError("mask", "{text}", {"text": text})
        return self

    def _open(self, folder: Path, shares: Sequence[float] | None) -> "MaskedDataset":
        return MaskedDataset(folder, self.context, shares, self.masking)


class MaskedDataset(Dataset):
    """What `prepare` returns: batches whose targets are the tokens themselves, and whose weights are 1 where asked for.

    What is hidden in training is a function of seed, epoch and the piece's number in the epoch's plan (of its document,
    where masks are static), whatever the number of processes. In evaluations it is always the same.
    """

    frame = 2

    def __init__(self, folder: Path, context: int, shares: Sequence[float] | None, masking: Masking):
        """Raises UserError when the tokenizer has no mask token."""
        super().__init__(folder, context, shares)
        self.masking, self.maskable = masking, Maskable.of(self.tokenizer)

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that the loss does not tell: hidden tokens do not spell the text."""
        return {}

    def _lengths(self, split: Split) -> np.ndarray:
        return np.maximum(self._records[split].ragged("tokens").lengths - 2, 0)  # but for what begins and ends them

    def _gather(self, split: Split, seed: int | None = None) -> Callable[[Plan, slice], TokenBatch]:
        return partial(self._masked, split, seed)

    def _masked(self, split: Split, seed: int | None, plan: Plan, rows: slice) -> TokenBatch:
        tokens, layout = self._records[split].ragged("tokens"), Layout(plan, rows)
        pieces, inside, piece = layout.pieces, layout.inside, layout.piece
        first, last = inside == 0, inside == layout.lengths[piece] - 1
        text = np.flatnonzero(~(first | last))
        targets = np.empty(len(piece), np.int64)
        targets[first], targets[last] = self.tokenizer.start, self.tokenizer.end
        targets[text] = tokens.gather(tokens.starts[pieces.document] + 1 + pieces.offset, pieces.length)

        masks = self.masking.masks
        if seed is None or masks:  # by document, however it is cut; evaluations have the epoch 0
            draws = Draws(EVALUATION if seed is None else seed, plan.epoch % (masks or 1), pieces.document)
            places = inside + pieces.offset[piece]
        else:
            draws, places = Draws(seed, plan.epoch, layout.numbers), inside
        choice, fate = (draws.stream(s).uniform_at(piece[text], places[text]) for s in (CHOICE, FATE))
        if self.masking.whole_words:
            choice = choice[self.maskable.words(targets[text], inside[text] == 1)]
        seen, weights = targets.copy(), np.zeros(len(piece), np.float32)
        seen[text], weights[text] = mask_tokens(targets[text], choice, fate, self.masking, self.maskable)
        weights = layout.filled(weights, 0, np.float32)
        return TokenBatch(
            tokens=layout.filled(seen, self._pad, np.int64),
            targets=layout.filled(targets, self._pad, np.int64),
            weights=weights,
            **layout.packed(),
            asked=to_tensor(_asked(weights.numpy() > 0)),
        )


def _asked(wanted: np.ndarray) -> np.ndarray:
    """Int64[B, K]: the columns of each row that are wanted (Bool[B, T]), and others as far as rows differ."""
    most = -(-int(wanted.sum(1).max(initial=1)) // TOGETHER) * TOGETHER
    return np.argsort(~wanted, axis=1, kind="stable")[:, :most]
