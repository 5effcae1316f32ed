"""Searching without gradients: a search proposes candidates, is told their losses, and proposes better ones.

Each is a function of its settings, its seed and the losses it was told, so that a search is resumed by telling it again
what it was told before.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from onefold.core.errors import missing_extra

ATTEMPTS = 20  # at a candidate that was not proposed before


class Search(Protocol):
    def ask(self) -> list[np.ndarray]:
        """The candidates of the next generation."""
        ...

    def tell(self, candidates: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        """What became of them."""
        ...


class CMAES:
    """Covariance matrix adaptation (Hansen 2016, arXiv 1604.00772) by pycma, from the origin.

    diagonal: variances alone adapt (sep-CMA-ES, Ros and Hansen 2008), in time and memory linear in `dims`, not cubic.
    """

    def __init__(self, dims: int, population: int, sigma: float = 1.0, seed: int = 0, diagonal: bool = False):
        try:
            import cma
        except ImportError:
            raise missing_extra("cma", "search", "CMA-ES") from None
        random = np.random.default_rng(seed)  # pycma's default is numpy's global one, which others draw from, too
        options: dict[str, Any] = {
            "popsize": population,
            "randn": lambda *shape: random.standard_normal(shape),
            "seed": float("nan"),
            "verbose": -9,
            "CMA_diagonal": diagonal,
        }
        self._search = cma.CMAEvolutionStrategy(np.zeros(dims), sigma, options)

    def ask(self) -> list[np.ndarray]:
        return self._search.ask()

    def tell(self, candidates: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        self._search.tell(list(candidates), [float(loss) for loss in losses])


class Evolution:
    """An evolutionary search over sequences of `length` choices from `choices`: (μ + λ) selection, μ = λ / 4.

    A child takes each place from one of two parents (uniform crossover), then changes each with probability
    1 / length, at least one (Bäck 1996; for prompts: Pan et al. 2023, arXiv 2311.08364, section 3). The first
    generation is drawn evenly, but for `begin`.
    """

    def __init__(self, choices: int, length: int, population: int, seed: int = 0, begin: Sequence[Sequence[int]] = ()):
        self.choices, self.length, self.population = choices, length, population
        self._random = np.random.default_rng(seed)
        self._begin = [np.array(row, np.int64) for row in begin]
        self._parents: list[tuple[float, np.ndarray]] = []
        self._seen: set[bytes] = set()

    def ask(self) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for n in range(self.population):
            for _ in range(ATTEMPTS):
                given = not self._parents and n < len(self._begin)
                one = self._begin[n] if given else self._child() if self._parents else self._drawn()
                if given or one.tobytes() not in self._seen:
                    break
            self._seen.add(one.tobytes())
            found.append(one)
        return found

    def tell(self, candidates: Sequence[np.ndarray], losses: Sequence[float]) -> None:
        self._parents += [(float(loss), one) for loss, one in zip(losses, candidates)]
        self._parents = sorted(self._parents, key=lambda pair: pair[0])[: max(2, self.population // 4)]

    def _drawn(self) -> np.ndarray:
        return self._random.integers(self.choices, size=self.length)

    def _child(self) -> np.ndarray:
        first, second = (self._parents[i][1] for i in self._random.integers(len(self._parents), size=2))
        child = np.where(self._random.random(self.length) < 0.5, first, second)
        changed = self._random.random(self.length) < 1 / self.length
        changed[self._random.integers(self.length)] = True
        return np.where(changed, self._drawn(), child)


def digest(candidate: np.ndarray) -> str:
    """A short hash of a candidate, to tell that a search proposes today what it proposed before."""
    return blake2b(np.ascontiguousarray(candidate).tobytes(), digest_size=8).hexdigest()
