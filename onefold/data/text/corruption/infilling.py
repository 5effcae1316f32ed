"""BART's noise (Lewis et al. 2019, arXiv 1910.13461, section 2.2): sentences out of order, gaps of unknown length."""

from functools import cache
from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.text.corruption.sentences import Sentences, permute_sentences
from onefold.data.text.corruption.sequences import Noise, Sequences
from onefold.data.text.tokenizers.tokenizer import Tokenizer

PERMUTED = 3  # stream of draws


class Infilling(Config):
    """Spans of Poisson-distributed length, each replaced by one mask token; of length 0, one that is put in.

    The last span of a text is cut so that exactly `rate` of its tokens (rounded) are gone. Spans lie in different gaps
    between the tokens that stay, every choice of gaps being equally likely, so two masks are never neighbours. (Where
    there would be more spans than gaps, or than tokens taken out, as in texts of a few tokens, the last one takes what
    is left: no text grows.)
    """

    kind: Literal["infilling"] = "infilling"
    rate: float = Field(default=0.3, ge=0, lt=1)
    mean: float = Field(default=3.0, gt=0, le=100)  # tokens of a span
    sentences: bool = True  # in random order, before spans are taken out

    def room(self, length: int) -> int:
        """Tokens of a text of which no more than `length` are to be said, nor read."""
        return length

    def widths(self, room: int) -> tuple[int, int]:
        """Tokens read, and said, of a text of `room`: at most."""
        return room, room

    def build(self, tokenizer: Tokenizer, room: int, pad: int) -> Noise:
        """Errors: UserError when the tokenizer has no mask token."""
        mask = tokenizer.mask
        if mask is None:
            raise UserError("this tokenizer has no mask token; train one with data.tokenizer.special=…, or take BART's")
        known = Sentences.of(tokenizer) if self.sentences else None

        def noise(texts: Sequences, borders: np.ndarray, draws: Draws) -> tuple[Sequences, Sequences]:
            moved = texts
            if known is not None:
                moved = permute_sentences(texts, known.ends(texts.tokens, borders), draws.stream(PERMUTED))
            return infill(moved, draws, self, mask, pad), texts

        return noise


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
    counts = np.minimum((before < gone[:, None]).sum(1), np.minimum(gaps, gone))
    number = np.arange(drawn.shape[1])
    lengths = np.where(number < counts[:, None] - 1, drawn, gone[:, None] - before)
    return np.where(number < counts[:, None], lengths, 0)[:, : int(counts.max(initial=0))], counts


@cache
def _poisson(mean: float) -> np.ndarray:
    """Float64[n]: the probability of at most k, up to where it is 1 but for rounding."""
    count = np.arange(1, int(mean + 20 * mean**0.5 + 20))
    return np.cumsum(np.exp(-mean + np.concatenate(([0], np.cumsum(np.log(mean) - np.log(count))))))
