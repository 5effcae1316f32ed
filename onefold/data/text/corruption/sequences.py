"""Rows of different lengths in one array."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onefold.data.draws import Draws


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


# (texts, where documents end: Bool[B, T], draws) → (what is read, what is to be said)
Noise = Callable[[Sequences, np.ndarray, Draws], tuple[Sequences, Sequences]]


def stacked(flat: np.ndarray, lengths: np.ndarray, pad: int) -> Sequences:
    """Rows of these lengths (Int64[B]) whose tokens (Int[N]) lie one behind the other."""
    found = np.full((len(lengths), int(lengths.max(initial=0))), pad, np.int64)
    found[np.arange(found.shape[1]) < lengths[:, None]] = flat
    return Sequences(found, lengths)


def merged(parts: Sequence[Sequences], places: Sequence[np.ndarray], pad: int) -> Sequences:
    """Row i of a part at place places[part][i]; all places together are 0…B-1."""
    lengths = np.empty(sum(map(len, parts)), np.int64)
    found = np.full((len(lengths), max((part.tokens.shape[1] for part in parts), default=0)), pad, np.int64)
    for part, own in zip(parts, places):
        lengths[own] = part.lengths
        found[own, : part.tokens.shape[1]] = part.tokens
    return Sequences(found, lengths)


def compact(tokens: np.ndarray, kept: np.ndarray, pad: int) -> Sequences:
    """Of each row the tokens (Int[B, T]) that are `kept` (Bool[B, T]), moved together."""
    return stacked(tokens[kept], kept.sum(1), pad)


def framed(rows: Sequences, before: Sequence[int], after: Sequence[int], pad: int) -> Sequences:
    """The same rows between what stands `before` and `after` each of them."""
    places, first = rows.lengths[:, None] + np.arange(len(after)) + len(before), len(before)
    found = np.full((len(rows), rows.tokens.shape[1] + first + len(after)), pad, np.int64)
    found[:, :first] = before
    found[:, first : first + rows.tokens.shape[1]] = np.where(rows.real, rows.tokens, pad)
    np.put_along_axis(found, places, np.broadcast_to(np.array(after, np.int64), places.shape), axis=1)
    return Sequences(found, rows.lengths + first + len(after))
