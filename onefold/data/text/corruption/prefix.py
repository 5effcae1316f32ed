"""Prefix language modelling (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1): a text is read up to somewhere."""

from typing import Literal

import numpy as np

from onefold.core.config import Config
from onefold.data.draws import Draws
from onefold.data.text.corruption.sequences import Noise, Sequences, compact
from onefold.data.text.tokenizers.tokenizer import Tokenizer


class Prefix(Config):
    """A text is read up to a place, every one being equally likely; the rest is to be said."""

    kind: Literal["prefix"] = "prefix"

    def room(self, length: int) -> int:
        """Tokens of a text of which no more than `length` are to be read, or said."""
        return length + 1

    def widths(self, room: int) -> tuple[int, int]:
        """Tokens read, and said, of a text of `room`: at most."""
        return room - 1, room - 1

    def build(self, tokenizer: Tokenizer, room: int, pad: int) -> Noise:
        """Never refuses."""
        return lambda texts, borders, draws: split_prefix(texts, draws, pad)


def split_prefix(texts: Sequences, draws: Draws, pad: int) -> tuple[Sequences, Sequences]:
    """(what is read, what is to be said) of each text, split at a random place that leaves something on either side.

    A text of a single token is all read.
    """
    place = 1 + (draws.uniform(1)[:, 0] * (texts.lengths - 1)).astype(np.int64)
    read = np.arange(texts.tokens.shape[1]) < np.minimum(place, texts.lengths)[:, None]
    return compact(texts.tokens, read, pad), compact(texts.tokens, texts.real & ~read, pad)
