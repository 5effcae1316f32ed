"""How good word vectors are: analogies (Mikolov et al. 2013) and similarity of pairs as people rate it (WordSim)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onefold.core.errors import UserError
from onefold.data.sources import open_text
from onefold.models.words.word_vectors import WordVectors

QUESTIONS = 256  # answered at once


@dataclass
class Section:
    """Questions of one kind: how many were answered right, of those whose four words are all known."""

    name: str
    right: int = 0
    asked: int = 0
    unknown: int = 0

    @property
    def accuracy(self) -> float | None:
        return self.right / self.asked if self.asked else None


@dataclass
class Analogies:
    """What became of a file of questions, by section."""

    sections: list[Section] = field(default_factory=list)

    @property
    def total(self) -> Section:
        return Section("total", *(sum(getattr(s, n) for s in self.sections) for n in ("right", "asked", "unknown")))


@dataclass(frozen=True)
class Pairs:
    """Rank correlation of cosines with people's ratings, over the pairs whose words are both known."""

    spearman: float
    pairs: int
    unknown: int


def evaluate_analogies(vectors: WordVectors, path: "str | Path", among: int | None = None) -> Analogies:
    """Answer a file of Google's format: ": section", then lines of four words, "Athens Greece Oslo Norway".

    The answer is the nearest to b − a + c but for a, b and c, among the first `among` words (None: all). Words are
    looked up as they are written, then in lower case. Raises UserError with the number of a line that is neither.
    """
    found = Analogies()
    waiting: list[tuple[Section, list[int]]] = []

    def answer() -> None:
        places = np.array([four for _, four in waiting], np.int64).reshape(-1, 4)
        a, b, c = (vectors.unit(places[:, i]) for i in range(3))
        right = vectors.nearest(b - a + c, places[:, :3], among) == places[:, 3]
        for (section, _), correct in zip(waiting, right.tolist()):
            section.right += correct
        waiting.clear()

    for number, line in _lines(path):
        if line.startswith(":"):
            found.sections.append(Section(line[1:].strip()))
            continue
        words = line.split()
        if len(words) != 4:
            raise UserError(f"{path}:{number}: expected four words or ': SECTION', found {len(words)}")
        if not found.sections:
            found.sections.append(Section("questions"))
        section, places = found.sections[-1], [vectors.find(word) for word in words]
        four = [place for place in places if place is not None and place < (among or len(vectors))]
        if len(four) < 4:
            section.unknown += 1
            continue
        section.asked += 1
        waiting.append((section, four))
        if len(waiting) == QUESTIONS:
            answer()
    answer()
    if not found.sections:
        raise UserError(f"{path} holds no questions")
    return found


def evaluate_pairs(vectors: WordVectors, path: "str | Path") -> Pairs:
    """Compare with a file of rated pairs: word, word, rating on a line, parted by tabs, commas or spaces.

    What follows a rating is left alone, and so is a first line of headings and what begins with #. Raises UserError
    with the number of a line that is neither, or when fewer than two pairs are known.
    """
    cosines, ratings, unknown = [], [], 0
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        parts = line.split("\t" if "\t" in line else "," if "," in line else None)
        try:
            first, second, rating = parts[0].strip(), parts[1].strip(), float(parts[2])
        except (IndexError, ValueError):
            if number == 1:
                continue
            raise UserError(f"{path}:{number}: expected two words and a rating") from None
        if vectors.find(first) is None or vectors.find(second) is None:
            unknown += 1
            continue
        cosines.append(vectors.similarity(first, second))
        ratings.append(rating)
    if len(ratings) < 2:
        raise UserError(f"{path}: of its pairs only {len(ratings)} have words that are known ({unknown} have not)")
    return Pairs(spearman(np.array(cosines), np.array(ratings)), len(ratings), unknown)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank. NaN where all values of one side are equal."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _lines(path: "str | Path") -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty."""
    try:
        with open_text(Path(path).expanduser()) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror or error}") from None
