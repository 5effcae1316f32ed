"""Sentences in a random order (BART; Lewis et al. 2019, arXiv 1910.13461, section 2.2)."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from onefold.data.draws import Draws
from onefold.data.text.corruption.masking import WORD_BEGINS
from onefold.data.text.corruption.sequences import Sequences
from onefold.data.text.tokenizers.tokenizer import Tokenizer

STOPS, WIDE_STOPS = (".", "!", "?", "…"), ("。", "！", "？")  # the latter with no blank behind them
CLOSERS = "\"')]}»”’*_ \t"  # what may stand between a full stop and the blank


@dataclass(frozen=True)
class Sentences:
    """What has to be known of a vocabulary to find sentences in tokens, Bool[V] each, `lines` Int64[V]."""

    stops: np.ndarray  # ends with a full stop
    wide: np.ndarray  # ends with one that needs no blank behind it
    closes: np.ndarray  # is nothing but what may follow a full stop
    begins: np.ndarray  # with a blank
    lines: np.ndarray  # how many end in it

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        size = tokenizer.size
        stops, wide, closes, begins, lines = (np.zeros(size, kind) for kind in (*[bool] * 4, np.int64))
        for piece, place in tokenizer.vocabulary.items():
            text = tokenizer.decode([place], special=True)
            shown = text.rstrip(CLOSERS)
            stops[place], wide[place] = shown.endswith(STOPS), shown.endswith(WIDE_STOPS)
            begins[place] = piece.startswith(WORD_BEGINS) or text[:1].isspace()
            closes[place] = not shown and not begins[place]
            lines[place] = text.count("\n")
        return cls(stops, wide, closes, begins, lines)

    def ends(self, tokens: np.ndarray, borders: np.ndarray) -> np.ndarray:
        """Bool[B, T]: the last tokens of sentences: full stops before a blank, and what closes a paragraph, or a text.

        tokens: Int[B, T]. borders: Bool[B, T], the last tokens of texts that stand in a row.
        """
        places = np.where(self.closes[tokens], 0, np.arange(tokens.shape[1]))
        opened = np.take_along_axis(tokens, np.maximum.accumulate(places, axis=1), axis=1)  # before what closes
        found = borders.copy()
        opened, after = opened[:, :-1], tokens[:, 1:]
        found[:, :-1] |= (self.stops[opened] & self.begins[after]) | (self.wide[opened] & ~self.closes[after])
        lines = self.lines[tokens]
        run = lines.copy()  # and those of the token before, where this one ends some
        run[:, 1:] += np.where(lines[:, 1:] > 0, lines[:, :-1], 0)
        found[:, :-1] |= (run[:, :-1] > 1) & (lines[:, 1:] == 0)
        return found


def permute_sentences(texts: Sequences, ends: np.ndarray, draws: Draws) -> Sequences:
    """The sentences of each text in random order. ends: Bool[B, T], the last tokens of sentences."""
    number = np.cumsum(ends, axis=1) - ends
    drawn = draws.uniform(int(number.max(initial=0)) + 1)
    keys = np.where(texts.real, np.take_along_axis(drawn, number, axis=1), 2)  # padding stays at the end
    order = np.argsort(keys, axis=1, kind="stable")
    return Sequences(np.take_along_axis(texts.tokens, order, axis=1), texts.lengths)
