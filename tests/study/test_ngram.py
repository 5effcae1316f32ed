"""The n-gram model against the textbook written out with dictionaries, and against the laws of probability."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from onefold.study.ngram import BLOCK, START, ByteNgram

TEXT = (
    b"the theory of the thing is that the other thing is a thing; this is not that theory, "
    b"and neither is the other. whether the weather is fine or whether the weather is not, "
)


class Reference:
    """Interpolated modified Kneser-Ney, one formula at a time."""

    def __init__(self, documents: list[bytes], order: int):
        self.order = order
        self.counts = [Counter() for _ in range(order + 1)]
        for document in documents:
            symbols = [START] * (order - 1) + list(document)
            for end in range(order, len(symbols) + 1):
                self.counts[order][tuple(symbols[end - order : end])] += 1
        for length in range(order - 1, 0, -1):  # N1+(• w): how many different symbols were seen before w
            before = defaultdict(set)
            for window in self.counts[length + 1]:
                before[window[1:]].add(window[0])
            self.counts[length] = Counter({window: len(symbols) for window, symbols in before.items()})
        self.discounts = [self._discounts(counts) for counts in self.counts]

    @staticmethod
    def _discounts(counts):
        n = Counter(counts.values())
        if not (n[1] and n[2] and n[3]):
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        raw = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]
        return tuple(min(max(d, 0.05), i) for i, d in enumerate(raw, 1))

    def probability(self, context: tuple[int, ...], byte: int) -> float:
        length = len(context) + 1
        lower = self.probability(context[1:], byte) if context else 1 / 256
        followers = {w[-1]: c for w, c in self.counts[length].items() if w[:-1] == context}
        if not followers:
            return lower
        discount = self.discounts[length]
        total = sum(followers.values())
        left = sum(discount[min(c, 3) - 1] for c in followers.values()) / total
        count = followers.get(byte, 0)
        return (count - discount[min(count, 3) - 1] if count else 0) / total + left * lower

    def bits_per_byte(self, documents: list[bytes]) -> float:
        bits = []
        for document in documents:
            symbols = [START] * (self.order - 1) + list(document)
            for end in range(self.order, len(symbols) + 1):
                window = tuple(symbols[end - self.order : end])
                bits.append(-math.log2(self.probability(window[:-1], window[-1])))
        return sum(bits) / len(bits)


def some_documents(seed: int) -> list[bytes]:
    draw = random.Random(seed)
    words = TEXT.split()
    return [b" ".join(draw.choices(words, k=draw.randrange(60))) for _ in range(6)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_agrees_with_the_textbook(order):
    train, unseen = some_documents(1), [*some_documents(2), b"zebra \xff\x00", b""]
    ours, theirs = ByteNgram.fit(train, order), Reference(train, order)
    assert ours.bits_per_byte(unseen) == pytest.approx(theirs.bits_per_byte(unseen), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5, 7])
@pytest.mark.parametrize("context", [b"", b"t", b"whether th", b"\xff\xfe\xfd\xfc\xfb\xfa"])
def test_probabilities_sum_to_one(order, context):
    p = ByteNgram.fit(some_documents(3), order).probabilities(context)
    assert p.shape == (256,)
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_score_is_the_product_of_the_distributions():
    model = ByteNgram.fit(some_documents(4), 3)
    text = b"the weather thing"
    bits = [-np.log2(model.probabilities(text[:end])[text[end]]) for end in range(len(text))]
    assert model.bits_per_byte([text]) == pytest.approx(np.mean(bits))


def test_contexts_stop_at_the_border_of_a_document():
    model = ByteNgram.fit([b"ab", b"cd"] * 50, 2)
    after_b = model.probabilities(b"ab")
    assert after_b[ord("c")] == pytest.approx(after_b[ord("a")])  # "bc" was never seen inside a document
    assert model.probabilities(b"a")[ord("b")] > 0.9


def test_random_bytes_cost_eight_bits():
    noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    assert ByteNgram.fit([noise[:150_000]], 1).bits_per_byte([noise[150_000:]]) == pytest.approx(8, abs=0.01)


def test_counting_in_blocks_changes_nothing(monkeypatch):
    train, unseen = some_documents(5), some_documents(6)
    whole = ByteNgram.fit(train, 4).bits_per_byte(unseen)
    assert sum(map(len, train)) < BLOCK
    monkeypatch.setattr("onefold.study.ngram.BLOCK", 300)
    assert ByteNgram.fit(train, 4).bits_per_byte(unseen) == pytest.approx(whole, rel=1e-12)


def test_refuses_an_order_that_does_not_fit_a_word():
    with pytest.raises(ValueError, match="order"):
        ByteNgram.fit([b"abc"], 8)
