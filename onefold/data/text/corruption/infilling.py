"""BART's noise (Lewis et al. 2019, arXiv 1910.13461, section 2.2): sentences out of order, gaps of unknown length."""

from functools import cache

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.text.corruption.sequences import Sequences


class Infilling(Config):
    """Spans of Poisson-distributed length, each replaced by one mask token; of length 0, one that is put in.

    The last span of a text is cut so that exactly `rate` of its tokens (rounded) are gone. Spans lie in different gaps
    between the tokens that stay, every choice of gaps being equally likely, so two masks are never neighbours. (Where
    there are more spans than gaps, in texts of a few tokens, the last one takes what is left.)
    """

    rate: float = Field(default=0.3, ge=0, lt=1)
    mean: float = Field(default=3.0, gt=0, le=100)  # tokens of a span


def permute_sentences(texts: Sequences, ends: np.ndarray, draws: Draws) -> Sequences:
    """The sentences of each text in random order. ends: Bool[B, T], the last tokens of sentences."""
    number = np.cumsum(ends, axis=1) - ends
    drawn = draws.uniform(int(number.max(initial=0)) + 1)
    keys = np.where(texts.real, np.take_along_axis(drawn, number, axis=1), 2)  # padding stays at the end
    order = np.argsort(keys, axis=1, kind="stable")
    return Sequences(np.take_along_axis(texts.tokens, order, axis=1), texts.lengths)


def infill(texts: Sequences, draws: Draws, infilling: Infilling, mask: int, pad: int) -> Sequences:
    """What is read of each text; what is to be said is the whole."""
    gone = np.rint(texts.lengths * infilling.rate).astype(np.int64)
    stay = texts.lengths - gone
    spans, counts = _spans(gone, stay + 1, infilling.mean, draws.stream(1))
    gaps = int(stay.max(initial=0)) + 1
    drawn = draws.stream(2).uniform(gaps)
    drawn[np.arange(gaps) > stay[:, None]] = 2  # there is no such gap
    chosen = np.argsort(drawn, axis=1)[:, : spans.shape[1]]  # the gap of each span; gap g is before kept token g
    taken, masks = np.zeros((len(texts), gaps), np.int64), np.zeros((len(texts), gaps), np.int64)
    row, column = np.nonzero(np.arange(chosen.shape[1]) < counts[:, None])
    taken[row, chosen[row, column]] = spans[row, column]
    masks[row, chosen[row, column]] = 1

    lengths = stay + counts
    found = np.full((len(texts), int(lengths.max(initial=0))), pad, np.int64)
    row, gap = np.nonzero(masks)
    found[row, gap + (np.cumsum(masks, axis=1) - masks)[row, gap]] = mask
    row, kept = np.nonzero(np.arange(gaps) < stay[:, None])
    found[row, kept + np.cumsum(masks, axis=1)[row, kept]] = texts.tokens[
        row, kept + np.cumsum(taken, axis=1)[row, kept]
    ]
    return Sequences(found, lengths)


def _spans(gone: np.ndarray, gaps: np.ndarray, mean: float, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """(lengths Int64[B, K] of spans that hold `gone` tokens together, in no more than `gaps`; how many they are)."""
    table = _poisson(mean)
    drawn = np.empty((len(gone), 0), np.int64)
    while (drawn.sum(1) < gone).any():
        drawn = np.concatenate((drawn, np.searchsorted(table, draws.uniform(16), side="right")), axis=1)
    before = np.cumsum(drawn, axis=1) - drawn
    counts = np.minimum((before < gone[:, None]).sum(1), gaps)
    number = np.arange(drawn.shape[1])
    lengths = np.where(number < counts[:, None] - 1, drawn, gone[:, None] - before)
    return np.where(number < counts[:, None], lengths, 0)[:, : int(counts.max(initial=0))], counts


@cache
def _poisson(mean: float) -> np.ndarray:
    """Float64[n]: the probability of at most k, up to where it is 1 but for rounding."""
    count = np.arange(1, int(mean + 20 * mean**0.5 + 20))
    return np.cumsum(np.exp(-mean + np.concatenate(([0], np.cumsum(np.log(mean) - np.log(count))))))
