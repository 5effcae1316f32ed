"""Text of which some tokens are hidden, as training data for encoders: documents, masked by the loader.

A document is cut into pieces, each of which stands between the tokens that begin and end a text, as it will when the
encoder is used; short ones are packed into one row, where attention stays inside a piece.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.batch import TokenBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.data.ahead import to_tensor
from onefold.data.draws import Draws
from onefold.data.loader import Evaluation
from onefold.data.order import Epoch
from onefold.data.prepared import Split
from onefold.data.text.corruption.masking import Maskable, Masking, mask_tokens
from onefold.data.text.corruption.next_sentence import PairPlan, plan_pairs
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import LoadTokenizer, TextData, TrainBPE
from onefold.data.text.layout import Layout
from onefold.data.text.plan import Plan
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, MASKS

EVALUATION = 0  # seed of the masks that all evaluations have
CHOICE, FATE = 1, 2  # streams of draws
TOGETHER = 16  # the number of predicted columns is a multiple of this: fewer different shapes


class MaskedTextData(TextData):
    """Documents of which hidden tokens are predicted (RoBERTa's full sentences, or BERT's pairs)."""

    kind: Literal["masked_text"] = "masked_text"  # pyright: ignore[reportIncompatibleVariableOverride]
    context: int = Field(default=512, ge=3)  # with the tokens that begin and end a text
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] = TrainBPE(special=ENCODER_TOKENS)
    masking: Masking = Masking()
    next_sentence: bool = False  # rows are pairs of passages, half of which do not follow each other (BERT)

    @model_validator(mode="after")
    def _has_mask(self) -> Self:
        if isinstance(self.tokenizer, TrainBPE) and not set(MASKS) & set(self.tokenizer.special):
            text = f"tokenizer.special needs a mask token, as in {list(ENCODER_TOKENS)}"
            raise PydanticCustomError("mask", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.next_sentence and len(self.sources) > 1:
            raise PydanticCustomError("pairs", "next_sentence takes its pairs from one source")
        if self.next_sentence and self.context < 5:
            raise PydanticCustomError("pairs", "next_sentence needs a context of 5 at least")
        return self

    def _open(self, folder: Path, shares: Sequence[float] | None) -> "MaskedDataset":
        kind = PairDataset if self.next_sentence else MaskedDataset
        return kind(folder, self.context, shares, self.masking)


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
        self._pad = self.tokenizer.end if self.tokenizer.pad is None else self.tokenizer.pad  # special: never asked for

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
        text = ~(first | last)
        targets = np.empty(len(piece), np.int64)
        targets[first], targets[last] = self.tokenizer.start, self.tokenizer.end
        targets[text] = tokens.gather(tokens.starts[pieces.document] + 1 + pieces.offset, pieces.length)

        masks = self.masking.masks
        if seed is None or masks:  # by document, however it is cut; evaluations have the epoch 0
            draws = Draws(EVALUATION if seed is None else seed, plan.epoch % (masks or 1), pieces.document)
            places = inside + pieces.offset[piece]
        else:
            draws, places = Draws(seed, plan.epoch, layout.numbers), inside
        choice, fate = (draws.stream(s).uniform_at(piece, places) for s in (CHOICE, FATE))
        seen, asked = self._mask(targets, first, choice, fate)
        asked = asked & (inside > pieces.skip[piece])  # what overlaps with the window before was asked for there
        weights = layout.filled(asked, 0, np.float32)
        return TokenBatch(
            tokens=layout.filled(seen, self._pad, np.int64),
            targets=layout.filled(targets, self._pad, np.int64),
            weights=weights,
            **layout.packed(),
            asked=to_tensor(_asked(weights.numpy() > 0)),
        )

    def _mask(
        self, tokens: np.ndarray, first: np.ndarray, choice: np.ndarray, fate: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what is seen, what is asked for) of texts that stand one behind the other, `first` where one begins: [N]."""
        if self.masking.whole_words:
            choice = choice[self.maskable.words(tokens, first)]
        return mask_tokens(tokens, choice, fate, self.masking, self.maskable)


@dataclass(frozen=True)
class PairEpoch:
    """The pairs of an epoch, in batches."""

    pairs: PairPlan
    epoch: Epoch

    @property
    def batches(self) -> int:
        return self.epoch.batches


class PairDataset(MaskedDataset):
    """The same with rows that are pairs of passages, and what is to be said of them: (follows, does not) [B, 2].

    With static masks the pairs repeat, too. The last batch of an epoch is filled up with pairs that it began with.
    """

    frame = 3

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> PairEpoch:
        number = epoch % self.masking.masks if self.masking.masks else epoch
        pairs = plan_pairs(self._lengths(split), self.context - self.frame, seed, number)
        return PairEpoch(pairs, Epoch(number, np.resize(np.arange(len(pairs)), -(-len(pairs) // rows) * rows), rows))

    def evaluation(self, split: Split, rows: int, stride: int | None = None) -> Evaluation[PairEpoch, TokenBatch]:
        """Pairs of the whole split, always the same."""
        self._check(split)
        planned = self.plan(split, 1, EVALUATION, 0)
        return Evaluation(planned, self._gather(split, EVALUATION), planned.batches, rows)

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config. Raises UserError when it cannot say whether a passage follows."""
        if getattr(model, "classes", None) != 2:
            raise UserError("next-sentence prediction needs an encoder with a classifier: set model.classes=2")
        return super().fit(model, grow)

    def _gather(self, split: Split, seed: int | None = None) -> Callable[[PairEpoch, slice], TokenBatch]:
        return partial(self._paired, split, seed)

    def _paired(self, split: Split, seed: int, planned: PairEpoch, rows: slice) -> TokenBatch:
        tokens, numbers, pairs = self._records[split].ragged("tokens"), planned.epoch.order[rows], planned.pairs
        a, b = pairs.first_length[numbers, None], pairs.second_length[numbers, None]
        column = np.arange(self.context)
        inside = (column > 0) & (column <= a), (column > a + 1) & (column <= a + 1 + b)
        ends, real = (column == a + 1) | (column == a + b + 2), column < a + b + 3
        targets = np.where(ends, self.tokenizer.end, self._pad)
        targets[:, 0] = self.tokenizer.start
        for at, document, offset, length in zip(
            inside, (pairs.first, pairs.second), (pairs.first_offset, pairs.second_offset), (a, b)
        ):
            starts = tokens.starts[document[numbers]] + 1 + offset[numbers]
            targets[at] = tokens.gather(starts, length[:, 0])  # row after row, as they lie
        draws = Draws(seed, planned.epoch.number, numbers)
        choice, fate = (draws.stream(s).uniform(self.context).reshape(-1) for s in (CHOICE, FATE))
        first = np.broadcast_to(column == 0, targets.shape).reshape(-1)
        seen, asked = (v.reshape(targets.shape) for v in self._mask(targets.reshape(-1), first, choice, fate))
        follows = pairs.follows[numbers]
        return TokenBatch(
            tokens=to_tensor(seen),
            targets=to_tensor(targets),
            weights=to_tensor(asked.astype(np.float32)),
            segments=None if real.all() else to_tensor(1 - real.astype(np.int64)),
            types=to_tensor((real & (column > a + 1)).astype(np.int64)),
            asked=to_tensor(_asked(asked)),
            classes=to_tensor(np.stack((follows, ~follows), axis=1).astype(np.float32)),
        )


def _asked(wanted: np.ndarray) -> np.ndarray:
    """Int64[B, K]: the columns of each row that are wanted (Bool[B, T]), and others as far as rows differ."""
    most = -(-int(wanted.sum(1).max(initial=1)) // TOGETHER) * TOGETHER
    return np.argsort(~wanted, axis=1, kind="stable")[:, :most]
