"""Random numbers that belong to a row, not to a batch: what happens to a picture does not depend on its company."""

from functools import cached_property

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


class Draws:
    """Numbers for a batch of rows, each a function of (seed, epoch, row, stream, how many were drawn before).

    Every row has a SplitMix64 generator of its own (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators"), and all of them advance together. A transform gets a stream of its own.
    """

    def __init__(self, seed: int, epoch: int, rows: np.ndarray, stream: int = 0):
        """rows: Int64[B], places in the records."""
        self._of = (seed, epoch, rows)
        self._stream = stream
        self._drawn = 0

    def stream(self, number: int) -> "Draws":
        """Other numbers for the same rows."""
        return Draws(*self._of, stream=number)

    def take(self, places: np.ndarray) -> "Draws":
        """What would come next, for some of the rows."""
        seed, epoch, rows = self._of
        found = Draws(seed, epoch, rows[places], self._stream)
        found._drawn = self._drawn
        return found

    def __len__(self) -> int:
        return len(self._of[2])

    @cached_property
    def _states(self) -> np.ndarray:
        """Where each row's generator begins, UInt64[B]; not computed for a batch that draws nothing."""
        seed, epoch, rows = self._of
        states = np.zeros(len(rows), np.uint64)
        for part in (seed % 2**64, epoch, rows, self._stream):
            states = _mixed(states + GOLDEN + np.asarray(part).astype(np.uint64))
        return states

    def bits(self, count: int) -> np.ndarray:
        """UInt64[B, count]"""
        steps = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64) * GOLDEN
        self._drawn += count
        return _mixed(self._states[:, None] + steps)

    def uniform(self, count: int) -> np.ndarray:
        """Float64[B, count] in [0, 1)"""
        return _fractions(self.bits(count))

    def uniform_at(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Float64[N]: number `places[i]` of those that `uniform` draws for the batch's row `rows[i]`, out of turn."""
        return _fractions(_mixed(self._states[rows] + (places.astype(np.uint64) + np.uint64(1)) * GOLDEN))

    def normal(self) -> np.ndarray:
        """Float64[B] of mean 0 and variance 1 (Box and Muller 1958)"""
        radius, angle = self.uniform(2).T
        return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)

    def which(self, probability: float) -> np.ndarray:
        """Int64[n]: the places in the batch of rows chosen with this probability each."""
        return np.flatnonzero(self.uniform(1)[:, 0] < probability)


def _fractions(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """The generator's output function; all arithmetic is modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
