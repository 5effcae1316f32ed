"""Next-sentence prediction (Devlin et al. 2018, arXiv 1810.04805, section 3.1): does the second part follow the first?

Planned for an epoch, as a pure function of (seed, epoch, lengths).
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng

from onefold.data.text.plan import cut


@dataclass(frozen=True)
class PairPlan:
    """Pairs of one epoch in order, Int64[P] each: tokens [offset, offset + length) of a document, and of another."""

    first: np.ndarray
    first_offset: np.ndarray
    first_length: np.ndarray
    second: np.ndarray
    second_offset: np.ndarray
    second_length: np.ndarray
    follows: np.ndarray  # Bool[P]: the second is what stands behind the first; else it is of another document

    def __len__(self) -> int:
        return len(self.follows)


def plan_pairs(lengths: np.ndarray, room: int, seed: int, epoch: int) -> PairPlan:
    """Documents of these lengths (Int[N], tokens) in pairs of at most `room` tokens, half of which do not follow.

    Documents are cut into pieces of `room`, each piece in two at a random place. Half of the pieces exchange their
    second parts with pieces of other documents; one that is too long for its new place loses its end. Where one
    document has most of the text, fewer can be exchanged.
    """
    if room < 2:
        raise ValueError(f"a pair needs room for two tokens, not {room}")
    generator = default_rng((seed, epoch))
    pieces = cut(np.asarray(lengths, np.int64), room, generator)
    pieces = pieces.take(np.flatnonzero(pieces.length > 1))
    pieces = pieces.take(generator.permutation(len(pieces)))
    begin = 1 + generator.integers(0, np.maximum(pieces.length - 1, 1))
    second = np.arange(len(pieces))
    half = len(pieces) // 2
    second[:half] = _strangers(pieces.document[:half], generator)
    order = generator.permutation(len(pieces))
    follows = second == np.arange(len(pieces))
    length = np.minimum((pieces.length - begin)[second], room - begin)
    first = (pieces.document, pieces.offset, begin)
    return PairPlan(
        *(f[order] for f in (*first, pieces.document[second], (pieces.offset + begin)[second], length, follows))
    )


def _strangers(document: np.ndarray, generator: Generator) -> np.ndarray:
    """Int64[P], a permutation: to every piece one of another document; itself, where there are not enough of others.

    In an order by document, what stands further on by the size of the largest document is of another one.
    """
    shuffled = generator.permutation(int(document.max(initial=0)) + 1)[document]
    order = np.argsort(shuffled, kind="stable")
    sizes = np.bincount(shuffled)
    largest = int(sizes.max(initial=0))
    others = len(document) - largest
    if largest > others:
        most = np.flatnonzero(shuffled[order] == sizes.argmax())
        order, largest = np.delete(order, most[others:]), others
    found = np.arange(len(document))
    found[order] = np.roll(order, -largest)
    return found
