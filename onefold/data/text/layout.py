"""Where the pieces of some rows of a plan stand in their batch."""

from functools import cached_property

import numpy as np
import torch

from onefold.data.ahead import to_tensor
from onefold.data.text.plan import Plan


class Layout:
    """The rows [rows.start, rows.stop) of a plan, which lie in one batch of it, as places in a batch [B, context].

    A piece takes up its length and the plan's frame; piece after piece, these places are numbered 0…N-1.
    """

    def __init__(self, plan: Plan, rows: slice):
        first = plan.first[rows.start : rows.stop + 1]
        self.numbers = np.arange(first[0], first[-1])  # of the pieces in the plan
        self.pieces, self.counts = plan.pieces.take(self.numbers), np.diff(first)
        self.lengths = self.pieces.length + plan.frame
        self.shape = len(self.counts), plan.context
        self.pure = bool(plan.pure[rows.start // plan.rows])

    @cached_property
    def piece(self) -> np.ndarray:
        """Int64[N]: which of the pieces each place belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def inside(self) -> np.ndarray:
        """Int64[N]: how far into its piece each place is."""
        return np.arange(len(self.piece)) - self._before[self.piece]

    def laid(self, values: np.ndarray, empty: np.ndarray) -> torch.Tensor:
        """Values [N] at their places, `empty` [B, context] elsewhere."""
        empty.reshape(-1)[self._place] = values
        return to_tensor(empty)

    def filled(self, values: np.ndarray, empty: int | float, dtype: type) -> torch.Tensor:
        """The same where one number stands elsewhere."""
        return self.laid(values, np.full(self.shape, empty, dtype))

    def packed(self) -> dict[str, torch.Tensor | None]:
        """Positions and segments [B, context]; None where every row is one piece. Empty places are a segment too."""
        if self.pure:
            return {"positions": None, "segments": None}
        number = np.arange(len(self._row)) - (np.cumsum(self.counts) - self.counts)[self._row]  # of a piece in its row
        padding = np.arange(self.shape[1]) - self._filled[:, None]  # below 0: none
        segments = np.repeat(self.counts[:, None], self.shape[1], axis=1)
        return {
            "positions": self.laid(self.inside, np.maximum(padding, 0)),
            "segments": self.laid(number[self.piece], segments),
        }

    @cached_property
    def _row(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def _before(self) -> np.ndarray:
        """Places of all pieces before each one."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def _filled(self) -> np.ndarray:
        """Places of each row."""
        return np.bincount(self._row, self.lengths, len(self.counts)).astype(np.int64)

    @cached_property
    def _place(self) -> np.ndarray:
        column = self._before - (np.cumsum(self._filled) - self._filled)[self._row]  # where in its row a piece begins
        return np.repeat(self._row * self.shape[1] + column, self.lengths) + self.inside
