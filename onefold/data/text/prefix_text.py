"""Documents whose beginnings are read in both directions, as training data for decoders: a prefix language model.

Of every piece of a document the tokens up to a random place are its prefix, which all tokens of the piece see; what
follows is predicted (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1). The encoder-decoder's way to the same task
is denoising.py with noise of the kind "prefix".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.prepared import Split
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import TextData
from onefold.data.text.layout import Layout
from onefold.data.text.plan import Plan

EVALUATION = 0  # seed of the places that all evaluations have


class PrefixTextData(TextData):
    """Documents to go on with, from a beginning that is read as a whole; the model becomes one with `prefix`."""

    kind: Literal["prefix_text"] = "prefix_text"  # pyright: ignore[reportIncompatibleVariableOverride]

    def _open(self, folder: Path, shares: Sequence[float] | None) -> "PrefixDataset":
        return PrefixDataset(folder, self.context, shares)


class PrefixDataset(Dataset):
    """What `prepare` returns: batches that tell prefixes, and ask for what follows them.

    Where a prefix ends is a function of seed, epoch and the piece's number in the epoch's plan, whatever the number of
    processes: every place is equally likely. In evaluations it is always the same.
    """

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that the loss does not tell: what is predicted does not spell the text."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config as of text, with `prefix`. Errors: UserError also when it cannot look ahead."""
        fitted = super().fit(model, grow)
        if "prefix" not in type(fitted).model_fields:
            kind = getattr(fitted, "kind", "stranger")
            raise UserError(f"data of the kind prefix_text need a decoder with attention, not a {kind} model")
        return fitted.but({"prefix": True})

    def _gather(self, split: Split, seed: int | None = None) -> Callable[[Plan, slice], TokenBatch]:
        return partial(self._with_prefixes, super()._gather(split, seed), seed)

    def _with_prefixes(
        self, gather: Callable[[Plan, slice], TokenBatch], seed: int | None, plan: Plan, rows: slice
    ) -> TokenBatch:
        layout = Layout(plan, rows)
        pieces, inside, piece = layout.pieces, layout.inside, layout.piece
        if seed is None:  # by the text, whatever the size of a batch
            draws = Draws(EVALUATION, 0, pieces.document << 32 | pieces.offset)
        else:
            draws = Draws(seed, plan.epoch, layout.numbers)
        ends = 1 + (draws.uniform(1)[:, 0] * layout.lengths).astype(np.int64)  # the last of 1…length is predicted from
        batch = gather(plan, rows)
        asked = layout.filled(inside >= ends[piece] - 1, 0, np.float32)
        return replace(
            batch, weights=batch.weights * asked, prefix=layout.filled(inside < ends[piece], False, np.bool_)
        )
