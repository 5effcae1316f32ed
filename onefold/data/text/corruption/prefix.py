"""Prefix language modelling (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1): a text is read up to somewhere."""

import numpy as np

from onefold.data.draws import Draws
from onefold.data.text.corruption.sequences import Sequences, compact


def split_prefix(texts: Sequences, draws: Draws, pad: int, end: int | None = None) -> tuple[Sequences, Sequences]:
    """(what is read, what is to be said) of each text, split at a random place that leaves something on either side.

    A text of a single token is all read. `end` ends what is to be said.
    """
    place = 1 + (draws.uniform(1)[:, 0] * (texts.lengths - 1)).astype(np.int64)
    read = np.arange(texts.tokens.shape[1]) < np.minimum(place, texts.lengths)[:, None]
    return compact(texts.tokens, read, pad), compact(texts.tokens, texts.real & ~read, pad, end)
