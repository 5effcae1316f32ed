"""Rows of different lengths in one array."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Row i is tokens[i, :lengths[i]]; behind it is padding."""

    tokens: np.ndarray  # Int64[B, T]
    lengths: np.ndarray  # Int64[B]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def real(self) -> np.ndarray:
        """Bool[B, T]: what is not padding."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def compact(tokens: np.ndarray, kept: np.ndarray, pad: int, end: int | None = None) -> Sequences:
    """Of each row the tokens (Int[B, T]) that are `kept` (Bool[B, T]), moved together; then `end`, if it is given."""
    lengths = kept.sum(1) + (end is not None)
    found = np.full((len(tokens), int(lengths.max(initial=0))), pad, np.int64)
    row, column = np.nonzero(kept)
    found[row, (kept.cumsum(1) - 1)[row, column]] = tokens[row, column]
    if end is not None:
        found[np.arange(len(found)), lengths - 1] = end
    return Sequences(found, lengths)
