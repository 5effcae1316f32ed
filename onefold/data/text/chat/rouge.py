"""ROUGE-L (Lin 2004): how much of two texts is the same words in the same order, one text against very many at once.

P = LCS / words of one    R = LCS / words of the other    ROUGE-L = 2PR / (P + R) = 2 LCS / (words of both)
"""

import re
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Lower case, letters and digits only, as the measure's usual implementation cuts English."""
    return _WORD.findall(text.lower())


class Known:
    """Texts to compare others with. The next row of the table of common subsequences is, for all texts together,
    new[j] = max over i ≤ j of max(old[i], old[i - 1] + (the word is the text's i-th)): a running maximum."""

    def __init__(self, texts: Iterable[str] = (), longest: int = 256):
        self.longest = longest  # words of a text that are looked at
        self._numbers: dict[str, int] = {}
        self._texts = np.zeros((64, 8), np.int32)  # numbers of words from 1; 0 behind the end
        self._lengths = np.zeros(64, np.int32)
        self._count = 0
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        ids = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in words(text)[: self.longest]]
        rows, wide = self._texts.shape
        more = (rows if self._count == rows else 0, max(0, len(ids) - wide))
        if any(more):
            self._texts = np.pad(self._texts, ((0, more[0]), (0, more[1])))
            self._lengths = np.pad(self._lengths, (0, more[0]))
        self._texts[self._count, : len(ids)] = ids
        self._lengths[self._count] = len(ids)
        self._count += 1

    def likeness(self, text: str) -> np.ndarray:
        """Float64[texts]: ROUGE-L of `text` and each known one, 0 where either has no words."""
        ids = [self._numbers.get(word, -1) for word in words(text)[: self.longest]]
        texts, lengths = self._texts[: self._count], self._lengths[: self._count]
        table = np.zeros((self._count, texts.shape[1] + 1), np.int16)
        for number in ids:
            if number > 0:
                stepped = np.maximum(table[:, 1:], table[:, :-1] + (texts == number))
                table[:, 1:] = np.maximum.accumulate(stepped, axis=1)
        return 2.0 * table[:, -1] / np.maximum(lengths + len(ids), 1)

    def nearest(self, text: str) -> tuple[float, int]:
        """(the greatest likeness, of which text); (0, -1) where none is known."""
        if not self._count:
            return 0.0, -1
        found = self.likeness(text)
        return float(found.max()), int(found.argmax())
