"""In which order the records of an epoch are read: a pure function, so that any place in it can be found again."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import default_rng

Kind = Literal["sequential", "pages", "random"]
# Rows are shuffled among so many pages at a time: what must be in memory while an epoch goes through a larger file.
BUFFER_PAGES = 32
BUFFER_BATCHES = 64  # that are sorted by length together


def order(count: int, kind: Kind, seed: int = 0, epoch: int = 0, page_rows: int = 64) -> np.ndarray:
    """The rows 0…count - 1 as an epoch reads them: Int64[count], each once.

    sequential: as they lie. random: every order is equally likely. pages: pages of `page_rows` neighbours in random
    order, and the rows of BUFFER_PAGES of them at a time in random order, so that a file larger than memory is read in
    stretches (the quasi-random order of FFCV, Leclerc et al. 2023, arXiv 2306.12517, section 3).
    """
    if kind == "sequential":
        return np.arange(count)
    generator = default_rng((seed, epoch))
    if kind == "random":
        return generator.permutation(count)
    pages = generator.permutation(-(-count // page_rows))
    rows = (pages[:, None] * page_rows + np.arange(page_rows)).reshape(-1)
    rows = rows[rows < count]  # the last page may be a short one
    for start in range(0, count, BUFFER_PAGES * page_rows):
        generator.shuffle(rows[start : start + BUFFER_PAGES * page_rows])
    return rows


def order_by_length(lengths: np.ndarray, rows: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """All rows (lengths: Int[N]) in random order, so that each batch of `rows` has similar lengths: Int64[N].

    Rows are sorted by length among BUFFER_BATCHES batches at a time, ties at random, and the batches shuffled; a last
    one that is not full stays the last.
    """
    generator = default_rng((seed, epoch))
    found = generator.permutation(len(lengths))
    for start in range(0, len(found), BUFFER_BATCHES * rows):
        some = found[start : start + BUFFER_BATCHES * rows]
        found[start : start + len(some)] = some[np.argsort(lengths[some], kind="stable")]
    full = len(found) // rows * rows
    shuffled = generator.permutation(found[:full].reshape(-1, rows)).reshape(-1)
    return np.concatenate((shuffled, found[full:]))


@dataclass(frozen=True)
class Epoch:
    """The rows of one epoch in `batches` batches of `rows` each, over all processes: Int64[batches · rows]."""

    number: int
    order: np.ndarray
    rows: int

    @property
    def batches(self) -> int:
        return len(self.order) // self.rows


def plan_epoch(
    count: int, rows: int, kind: Kind = "random", seed: int = 0, epoch: int = 0, page_rows: int = 64
) -> Epoch:
    """All `count` records in batches of `rows`. The last batch is filled up with those that the epoch began with."""
    found = order(count, kind, seed, epoch, page_rows)
    return Epoch(epoch, np.resize(found, -(-count // rows) * rows), rows)  # resize repeats from the beginning
