"""Which documents are held out: a pure function of their contents, a share and a seed."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

# A document larger than so many times the share of all bytes is never held out: it would be most of the test.
LARGEST = 4


def content_hash(text: str, seed: int = 0) -> int:
    """64 bits that are equal for texts that differ in white space only."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return int.from_bytes(blake2b(words, digest_size=8, key=seed.to_bytes(8, "little")).digest())


@dataclass(frozen=True)
class Split:
    """Hashes of the documents held out whole (UInt64, sorted); where those are too few, a share of each one's end."""

    held_out: np.ndarray
    tail: float = 0.0

    def whole(self, key: int) -> bool:
        place = np.searchsorted(self.held_out, np.uint64(key))
        return bool(place < len(self.held_out) and self.held_out[place] == np.uint64(key))

    def divide(self, text: str, key: int) -> tuple[str, str]:
        """(for training, held out)."""
        if self.tail:
            at = int(len(text) * (1 - self.tail))
            at = text.find("\n", max(0, at - 1), at + 1000) + 1 or at  # at the end of a line, if one is near
            return text[:at], text[at:]
        return ("", text) if self.whole(key) else (text, "")


def choose(keys: np.ndarray, sizes: np.ndarray, share: float) -> Split:
    """Hold out `share` of the documents, at least one; of equal documents (by key) all or none.

    keys: UInt64[N], content hashes, which also say the order; sizes: Int[N] in bytes. Where the documents are so few
    that whole ones would be a very large or very small part of the text, the end of each is held out instead.
    """
    if not share:
        return Split(np.empty(0, np.uint64))
    unique, inverse = np.unique(keys, return_inverse=True)  # sorted by hash: shuffled, as far as contents go
    weight = np.bincount(inverse, sizes, len(unique))
    total = weight.sum()
    candidates = np.flatnonzero(weight <= LARGEST * share * total)
    chosen = candidates[: max(1, round(share * len(unique)))]
    few = len(unique) < 1 / share and weight[chosen].sum() < share / LARGEST * total
    if not len(chosen) or few or len(chosen) == len(unique):
        return Split(np.empty(0, np.uint64), share)
    return Split(unique[chosen])
