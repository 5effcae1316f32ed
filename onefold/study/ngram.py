"""An n-gram model of bytes: what counting alone predicts, fast enough to be a baseline of every run.

Interpolated modified Kneser–Ney (Chen & Goodman 1998, section 4.1.6). A window of `order` symbols is packed into one
uint64, nine bits each, so that sorting integers counts windows and a binary search looks one up. The ninth bit makes
room for `START`, which pads the left of every document: no context reaches over a document's beginning.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

START = 256  # only ever a context: the symbol before a document's first byte
BITS = 9
MOST_ORDER = 64 // BITS
BLOCK = 1 << 24  # bytes counted at once: bounds the memory of fitting (8 bytes each, and as much again to sort)


@dataclass(frozen=True)
class _Order:
    """One level of the model: the windows of one length that were seen, and what their contexts sum up to."""

    windows: np.ndarray  # uint64[N], sorted: context << 9 | byte
    discounted: np.ndarray  # float64[N]: the discounted count over the context's total
    contexts: np.ndarray  # uint64[M], sorted
    backoff: np.ndarray  # float64[M]: the probability that is left for the order below


class ByteNgram:
    """`ByteNgram.fit(documents, order=5).bits_per_byte(held_out)`.

    Documents are byte strings; each is predicted from its own beginning, and every byte of it counts.
    """

    def __init__(self, orders: list[_Order]):
        self._orders = orders

    @classmethod
    def fit(cls, documents: Iterable[bytes], order: int = 5) -> "ByteNgram":
        """Count windows of up to `order` bytes (1…7)."""
        if not 1 <= order <= MOST_ORDER:
            raise ValueError(f"order must lie in 1…{MOST_ORDER}, not {order}")
        windows, counts = _count(documents, order)
        orders = []
        for length in range(order, 0, -1):
            orders.append(_level(windows, counts))
            # Below the top, a window counts once for each different symbol that was seen before it. Padding gives
            # every window such a symbol, so the longer windows without their first symbol are just that count.
            windows, counts = np.unique(windows & _mask(length - 1), return_counts=True)
        return cls(orders[::-1])

    @property
    def order(self) -> int:
        return len(self._orders)

    def bits_per_byte(self, documents: Iterable[bytes]) -> float:
        """Mean of −log2 p over the bytes of the documents."""
        total, size = 0.0, 0
        for block in _blocks(documents):
            windows = _windows(block, self.order)
            seen, times = np.unique(windows, return_counts=True)
            total -= float(times @ np.log2(self._probability(seen)))
            size += len(windows)
        return total / size

    def probabilities(self, context: bytes) -> np.ndarray:
        """Float[256]: the distribution of the byte after `context`, which begins a document when it is short."""
        symbols = ([START] * self.order + list(context))[-self.order + 1 :] if self.order > 1 else []
        packed = 0
        for symbol in symbols:
            packed = packed << BITS | symbol
        return self._probability(np.uint64(packed << BITS) | np.arange(256, dtype=np.uint64))

    def _probability(self, windows: np.ndarray) -> np.ndarray:
        probability = np.full(len(windows), 1 / 256)
        for length, level in enumerate(self._orders, 1):
            part = windows & _mask(length)
            at, known = _find(level.contexts, part >> BITS)
            probability[known] *= level.backoff[at[known]]
            at, known = _find(level.windows, part)
            probability[known] += level.discounted[at[known]]
        return probability


def _count(documents: Iterable[bytes], order: int) -> tuple[np.ndarray, np.ndarray]:
    """All windows of `order` symbols that end in a byte: sorted, each once, and how often each occurs."""
    windows, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for block in _blocks(documents):
        more = np.unique(_windows(block, order), return_counts=True)
        merged, place = np.unique(np.concatenate([windows, more[0]]), return_inverse=True)
        both = np.concatenate([counts, more[1]])
        windows, counts = merged, np.bincount(place, both, len(merged)).astype(np.int64)
    return windows, counts


def _level(windows: np.ndarray, counts: np.ndarray) -> _Order:
    steps = _discounts(counts)
    begins = np.flatnonzero(np.diff(windows >> BITS, prepend=np.uint64(2**64 - 1)))
    totals = np.add.reduceat(counts, begins).astype(float)
    taken = steps[np.minimum(counts, 3)]
    spread = np.repeat(totals, np.diff(begins, append=len(windows)))
    return _Order(
        windows=windows,
        discounted=(counts - taken) / spread,
        contexts=windows[begins] >> BITS,
        backoff=np.add.reduceat(taken, begins) / totals,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Float[4]: what is taken from a count of 0, 1, 2 and 3 or more (Chen & Goodman, equation 26)."""
    once, twice, thrice, fourfold = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if 0 in (once, twice, thrice):  # too little text to estimate from
        return np.array([0, 0.5, 1.0, 1.5])
    share = once / (once + 2 * twice)
    estimates = (1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * fourfold / thrice)
    # The estimates assume Zipf-like counts; short text breaks them, and a discount outside (0, n] is no discount.
    return np.array([0, *(np.clip(value, 0.05, n) for n, value in enumerate(estimates, 1))])


def _blocks(documents: Iterable[bytes]) -> Iterable[list[bytes]]:
    block, size = [], 0
    for document in documents:
        block.append(document)
        size += len(document)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if size:
        yield block


def _windows(documents: list[bytes], order: int) -> np.ndarray:
    """uint64[sum of lengths]: for each byte, itself and the `order` − 1 symbols before it."""
    total = sum(map(len, documents))
    symbols = np.full(total + (order - 1) * len(documents), START, np.uint16)
    ends_in_byte = np.zeros(len(symbols), bool)
    at = 0
    for document in documents:
        at += order - 1
        symbols[at : at + len(document)] = np.frombuffer(document, np.uint8)
        ends_in_byte[at : at + len(document)] = True
        at += len(document)
    packed = np.zeros(len(symbols), np.uint64)
    for back in range(order - 1, -1, -1):
        packed <<= np.uint64(BITS)
        packed[back:] |= symbols[: len(symbols) - back]
    return packed[ends_in_byte]


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key lies in the sorted table, and whether it does."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _mask(symbols: int) -> np.uint64:
    return np.uint64((1 << BITS * symbols) - 1)
