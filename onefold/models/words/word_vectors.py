"""Words as vectors: nearest neighbours, and analogies by adding and subtracting (Mikolov et al., arXiv 1301.3781)."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

import numpy as np
from jaxtyping import Float32, Int

from onefold.core.errors import UserError

BLOCK = 1 << 16  # vectors that are compared at once
SEARCHED = 50_000  # of the most frequent words, for a hint about a mistyped one


class WordVectors:
    """A vector for every word, the most frequent word first where the words come from a corpus.

    words: each of them once. matrix: a row for each word.
    """

    def __init__(self, words: Sequence[str], matrix: Float32[np.ndarray, "V D"]):
        if len(words) != len(matrix):
            raise ValueError(f"{len(words)} words for {len(matrix)} vectors")
        self.words, self.matrix = list(words), matrix
        self._place = {word: i for i, word in enumerate(self.words)}
        if len(self._place) != len(self.words):
            raise ValueError("a word has two vectors")
        self._norms: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._place

    def __getitem__(self, word: str) -> Float32[np.ndarray, " D"]:
        return self.matrix[self.place(word)]

    @property
    def width(self) -> int:
        return self.matrix.shape[1]

    def find(self, word: str) -> int | None:
        """The row of a word; of its lower-case form where it has none as it is written; None where neither has one."""
        found = self._place.get(word)
        return self._place.get(word.lower()) if found is None else found

    def place(self, word: str) -> int:
        """`find`.

        Errors: UserError naming similar words where there is none.
        """
        found = self.find(word)
        if found is None:
            near = get_close_matches(word.lower(), self.words[:SEARCHED], 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UserError(f"{word!r} is not among the {len(self):,} words{hint}")
        return found

    def unit(self, places: Int[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
        """Rows at length 1 (a row of zeros stays one)."""
        return self.matrix[places] / self._lengths()[places, None]

    def similarity(self, a: str, b: str) -> float:
        """The cosine of the angle between two words' vectors."""
        first, second = self.unit(np.array([self.place(a), self.place(b)]))
        return float(first @ second)

    def neighbours(self, word: "str | Float32[np.ndarray, ' D']", count: int = 10) -> list[tuple[str, float]]:
        """The words nearest to a word (itself left out) or to a vector, with their cosines, the nearest first."""
        if isinstance(word, str):
            place = self.place(word)
            return self._near(self.unit(np.array([place]))[0], count, (place,))
        return self._near(word / max(float(np.linalg.norm(word)), 1e-30), count, ())

    def analogy(self, word: str, minus: str, plus: str, count: int = 10) -> list[tuple[str, float]]:
        """`analogy("king", "man", "woman")`: what is to `plus` as `word` is to `minus`, the best first.

        The neighbours of word − minus + plus, of unit vectors, without these three (3CosAdd).
        """
        places = np.array([self.place(word), self.place(minus), self.place(plus)])
        a, b, c = self.unit(places)
        query = a - b + c
        return self._near(query / max(float(np.linalg.norm(query)), 1e-30), count, places.tolist())

    def nearest(
        self, queries: Float32[np.ndarray, "N D"], without: Int[np.ndarray, "N K"], among: int | None = None
    ) -> Int[np.ndarray, " N"]:
        """The row of the word nearest to each query, but for the K rows that are named for it.

        among: only the first so many words.
        """
        best, found = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
        for first, cosines in self._blocks(queries, among):
            rows, columns = np.nonzero((without >= first) & (without < first + cosines.shape[1]))
            cosines[rows, without[rows, columns] - first] = -np.inf
            here = cosines.argmax(1)
            top = cosines[np.arange(len(queries)), here]
            better = top > best
            best[better], found[better] = top[better], first + here[better]
        return found

    def _near(self, query: np.ndarray, count: int, without: Iterable[int]) -> list[tuple[str, float]]:
        cosines = np.concatenate([block[0] for _, block in self._blocks(query[None], None)])
        cosines[list(without)] = -np.inf
        count = max(0, min(count, len(self) - len(set(without))))
        top = np.argpartition(-cosines, count - 1)[:count] if count else np.empty(0, int)
        return [(self.words[i], float(cosines[i])) for i in top[np.argsort(-cosines[top], kind="stable")]]

    def _blocks(self, queries: np.ndarray, among: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """(first word, |query| · cosines [N, words]) for a block of words at a time: all would be too large."""
        end, lengths = min(len(self), among or len(self)), self._lengths()
        for first in range(0, end, BLOCK):
            rows = slice(first, min(first + BLOCK, end))
            yield first, queries @ self.matrix[rows].T / lengths[rows]

    def _lengths(self) -> np.ndarray:
        if self._norms is None:
            parts = [np.linalg.norm(self.matrix[i : i + BLOCK], axis=1) for i in range(0, len(self), BLOCK)]
            self._norms = np.maximum(np.concatenate([*parts, np.empty(0, np.float32)]), 1e-30).astype(np.float32)
        return self._norms
