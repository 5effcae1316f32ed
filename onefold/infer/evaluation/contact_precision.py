"""How many of the contacts that a method is surest of are contacts: precision at L, L/2 and L/5 (P@L).

L is the number of residues of a chain whose places are known. Pairs count whose residues are far enough apart along the
chain: 6 to 11 (short), 12 to 23 (medium), 24 and more (long), as in CASP and in Rao et al. (2020.12.15.422761).
"""

from collections.abc import Iterable, Mapping

import numpy as np

RANGES: Mapping[str, tuple[int, int | None]] = {"short": (6, 12), "medium": (12, 24), "long": (24, None)}
SHARES: Mapping[str, float] = {"P@L": 1.0, "P@L/2": 0.5, "P@L/5": 0.2}


def precision(
    scores: np.ndarray,
    contacts: np.ndarray,
    known: np.ndarray | None = None,
    low: int = 6,
    high: int | None = None,
    share: float = 1.0,
) -> float:
    """Of the ⌊share · L⌋ highest `scores` (Float[L, L], the upper half counts), the share that are `contacts`.

    known: Bool[L], which residues have places; None: all. low, high: separations from `low` to `high` - 1. Of pairs
    that tie at the last place, the average over all orders counts, so that the order of pairs does not matter. What a
    method says nothing of (NaN) comes last; places for which there is no pair are misses.
    """
    size = len(scores)
    known = np.ones(size, bool) if known is None else known
    first, second = np.triu_indices(size, low)
    counted = known[first] & known[second]
    if high is not None:
        counted &= second - first < high
    first, second = first[counted], second[counted]
    given = np.nan_to_num(np.asarray(scores, np.float64)[first, second], nan=-np.inf)
    right = np.asarray(contacts, bool)[first, second]
    places = max(1, int(share * known.sum() + 1e-9))
    if len(given) <= places:
        return float(right.sum() / places)
    last = np.partition(given, len(given) - places)[len(given) - places]
    above, tied = given > last, given == last
    return float((right[above].sum() + (places - above.sum()) * right[tied].mean()) / places)


def precisions(
    scores: np.ndarray, contacts: np.ndarray, known: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """{"short": {"P@L": …, "P@L/2": …, "P@L/5": …}, "medium": …, "long": …}"""
    return {
        name: {label: precision(scores, contacts, known, low, high, share) for label, share in SHARES.items()}
        for name, (low, high) in RANGES.items()
    }


def mean_precisions(found: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean over chains of what `precisions` gives."""
    found = list(found)
    return {name: {label: float(np.mean([each[name][label] for each in found])) for label in SHARES} for name in RANGES}
