"""How good what a model says of texts is, each figure with the interval that its number of texts allows.

Shares have Wilson's interval; all others resample the texts (Efron's percentile bootstrap). Both are 95% intervals.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onefold.infer.tags import spans

DRAWS = 500  # resamplings
_Z = 1.959964
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95% interval; `share`: it is shown in percent."""

    name: str
    value: float
    low: float
    high: float
    share: bool = True

    def __str__(self) -> str:
        value, low, high = (f"{v:.1%}" if self.share else f"{v:.3f}" for v in (self.value, self.low, self.high))
        return f"{self.name} {value} ({low} to {high})"


def share(name: str, right: float, count: int) -> Figure:
    """`right` of `count`, with Wilson's interval."""
    p, z = right / count, _Z**2 / count
    middle, half = (p + z / 2) / (1 + z), _Z / (1 + z) * np.sqrt(p * (1 - p) / count + z / count / 4)
    return Figure(name, p, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def resampled(
    name: str, statistic: Callable[[np.ndarray], float], count: int, shown_as_share: bool = True, seed: int = 0
) -> Figure:
    """statistic: of the rows with these numbers (Int[count], some more than once)."""
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(count, size=count)) for _ in range(DRAWS)]
    low, high = np.nanquantile(drawn, (0.025, 0.975)) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Figure(name, statistic(np.arange(count)), float(low), float(high), shown_as_share)


def of_classes(said: Sequence[int], truth: Sequence[int], classes: int) -> list[Figure]:
    """Accuracy, and macro F1: the mean over the classes that occur of 2 · true positives / (said + true)."""
    guesses, real = np.asarray(said), np.asarray(truth)

    def macro(rows: np.ndarray) -> float:
        a, b = guesses[rows], real[rows]
        both = np.bincount(a, minlength=classes) + np.bincount(b, minlength=classes)
        right = np.bincount(a[a == b], minlength=classes)
        return float((2 * right[both > 0] / both[both > 0]).mean())

    right = int((guesses == real).sum())
    return [share("accuracy", right, len(real)), resampled("macro F1", macro, len(real))]


def of_tags(said: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], entities: bool) -> list[Figure]:
    """Accuracy of words; where tags spell entities also precision, recall and F1 of whole ones, as CoNLL counts them.

    Words of a text are not independent, so all intervals resample texts.
    """
    words = np.array([[sum(a == b for a, b in zip(s, t)), len(t)] for s, t in zip(said, truth)], float)
    accuracy = _ratio("accuracy of words", words[:, 0], words[:, 1])
    if not entities:
        return [accuracy]
    found = [(set(spans(s)), set(spans(t))) for s, t in zip(said, truth)]
    both, given, real = (
        np.array([count(s, t) for s, t in found], float)
        for count in (lambda s, t: len(s & t), lambda s, t: len(s), lambda s, t: len(t))
    )
    return [
        _ratio("entity F1", 2 * both, given + real),
        _ratio("entity precision", both, given),
        _ratio("entity recall", both, real),
        accuracy,
    ]


def _ratio(name: str, above: np.ndarray, below: np.ndarray) -> Figure:
    return resampled(name, lambda rows: float(above[rows].sum() / max(below[rows].sum(), 1)), len(above))


def of_answers(said: Sequence[str], truth: Sequence[Sequence[str]]) -> list[Figure]:
    """Exact match and F1 of words, against the nearest of several right answers (SQuAD, arXiv 1606.05250, section 6.1).

    Where there is no answer, saying nothing is right, and nothing else (arXiv 1806.03822).
    """
    pairs = [(answer, [t for t in right if normalised(t)] or [""]) for answer, right in zip(said, truth)]
    exact = [max(float(normalised(answer) == normalised(t)) for t in right) for answer, right in pairs]
    overlap = np.array([max(word_f1(answer, t) for t in right) for answer, right in pairs])
    f1 = resampled("F1", lambda rows: float(overlap[rows].mean()), len(pairs))
    return [share("exact match", sum(exact), len(pairs)), f1]


def normalised(answer: str) -> str:
    """Without case, punctuation, articles and blanks that are too many, as SQuAD compares answers."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def word_f1(said: str, right: str) -> float:
    """Of the words that two answers have in common."""
    a, b = normalised(said).split(), normalised(right).split()
    if not a or not b:
        return float(a == b)
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b))


def of_numbers(said: Sequence[float], truth: Sequence[float]) -> list[Figure]:
    """Pearson's and Spearman's correlation, and R²: the share of the variance that is explained."""
    a, b = np.asarray(said, float), np.asarray(truth, float)

    def explained(rows: np.ndarray) -> float:
        variance = np.square(b[rows] - b[rows].mean()).sum()
        return float(1 - np.square(a[rows] - b[rows]).sum() / variance) if variance else float("nan")

    return [
        resampled("Pearson", lambda rows: correlation(a[rows], b[rows]), len(a), False),
        resampled("Spearman", lambda rows: correlation(ranks(a[rows]), ranks(b[rows])), len(a), False),
        resampled("R²", explained, len(a), False),
    ]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN where either does not vary."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]
