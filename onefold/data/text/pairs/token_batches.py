"""Batches that hold a number of tokens, however many texts that are: pairs of like lengths, planned a whole epoch."""

from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng


@dataclass(frozen=True)
class TokenPlan:
    """Which pairs each batch of an epoch holds.

    A batch stands for `rows` rows of as many tokens as a row may have. Its pairs, mostly more than `rows`, are shared
    among those rows evenly: a loader that asks for some of the rows, as one of several processes does, gets the pairs
    of these. Batch b holds the pairs order[begins[b]:ends[b]].
    """

    number: int  # the epoch's
    order: np.ndarray  # Int64: places in the records
    begins: np.ndarray  # Int64[batches]
    ends: np.ndarray  # Int64[batches]
    rows: int

    @property
    def batches(self) -> int:
        return len(self.ends)

    @property
    def count(self) -> int:
        """Rows of all batches; a last one of fewer pairs than rows has as many as pairs."""
        last = int(self.ends[-1] - self.begins[-1]) if self.batches else 0
        return self.rows * max(0, self.batches - 1) + min(self.rows, last)

    def pairs(self, rows: slice) -> np.ndarray:
        """The pairs of these rows of the epoch, which lie in one batch: Int64[n], at least one a row."""
        batch = rows.start // self.rows
        begin, held = int(self.begins[batch]), int(self.ends[batch] - self.begins[batch])
        there = min(self.rows, held)
        first, last = (begin + held * (row - batch * self.rows) // there for row in (rows.start, rows.stop))
        return self.order[first:last]


def plan_tokens(
    lengths: np.ndarray, context: int, rows: int, seed: int = 0, epoch: int = 0, fill: bool = True
) -> TokenPlan:
    """All pairs (lengths: Int[N, 2], at most `context` each) in batches of at most rows · context tokens a side.

    Padding counts: a batch of n pairs has n times its longest side. Pairs are sorted by their longer side, then by
    their second one, ties at random, cut into batches, and the batches shuffled. fill: the last batch takes pairs of
    the one before along, so that each of its rows has one; otherwise every pair comes once, and a batch that may have
    fewer pairs than rows is the last.
    """
    generator = default_rng((seed, epoch))
    longest = lengths.max(1)
    found = generator.permutation(len(lengths))
    found = found[np.lexsort((lengths[found, 1], longest[found]))]
    if fill and 0 < len(found) < rows:
        found = np.resize(found, rows)
    ends = _cut(longest[found], rows * context)
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))[: len(ends)]
    if fill and len(ends):
        begins[-1] = min(begins[-1], len(found) - rows)
    turn = generator.permutation(len(ends) if fill else max(0, len(ends) - 1))
    turn = turn if fill else np.append(turn, np.arange(len(turn), len(ends)))
    return TokenPlan(epoch, found, begins[turn], ends[turn], rows)


def _cut(longest: np.ndarray, budget: int) -> np.ndarray:
    """Where batches of sorted lengths end: each as long as (its pairs) · (its longest) stays within the budget."""
    ends: list[int] = []
    begin = 0
    while begin < len(longest):
        some = longest[begin : begin + max(1, budget // int(longest[begin]))]
        fits = int(np.searchsorted(some * np.arange(1, len(some) + 1), budget, side="right"))
        begin += max(1, fits)
        ends.append(begin)
    return np.array(ends, np.int64)
