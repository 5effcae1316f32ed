"""Synthetic families of proteins whose contacts are known: sampled from a Potts model, never from nature.

    P(a) ∝ exp(Σ_i h_i(a_i) + Σ_(i,j) J_ij(a_i, a_j)),   (i, j) over the contacts of a synthetic fold

Fields h say which residues are conserved, couplings J which ones like to touch. Every contact has couplings of its own,
so that a pair of residues alone does not tell whether it touches: only chains of a family together do.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from onefold.core.files import atomic_write
from onefold.data.proteins.alphabet import AMINO_ACIDS

SYNTHETIC = "synthetic"  # what stands for the families below where a file of proteins is asked for
FAMILIES, LENGTH, CHAINS = 2, 32, 3000
NEAREST = 6  # positions along the chain between residues whose contact says something


@dataclass(frozen=True)
class Potts:
    """A family: `fields` Float[L, 20], `pairs` Int[C, 2] of positions in contact, `couplings` Float[C, 20, 20]."""

    fields: np.ndarray
    pairs: np.ndarray
    couplings: np.ndarray

    @property
    def length(self) -> int:
        return len(self.fields)

    def contacts(self) -> np.ndarray:
        """Bool[L, L], symmetric."""
        touch = np.zeros((self.length, self.length), bool)
        touch[self.pairs[:, 0], self.pairs[:, 1]] = True
        return touch | touch.T

    def sample(self, count: int, seed: int, sweeps: int = 25) -> np.ndarray:
        """`count` chains as letters' places in AMINO_ACIDS, Int8[count, L], by Gibbs sampling, all chains at once."""
        generator = np.random.default_rng(seed)
        states = len(AMINO_ACIDS)
        chains = generator.integers(states, size=(self.length, count))  # a position's residues side by side
        touching: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(self.length)]  # (who, couplings by its state)
        for (i, j), coupling in zip(self.pairs, self.couplings):
            touching[i].append((j, coupling.T))
            touching[j].append((i, coupling))
        for _ in range(sweeps):
            for i in generator.permutation(self.length):
                energy = self.fields[i] + sum(table[chains[other]] for other, table in touching[i])
                energy = np.broadcast_to(energy, (count, states))
                weight = np.exp(energy - energy.max(1, keepdims=True)).cumsum(1)
                drawn = generator.random(count) * weight[:, -1]
                chains[i] = (weight < drawn[:, None]).sum(1).clip(max=states - 1)
        return chains.T.astype(np.int8)


def couplings(count: int, seed: int, strength: float = 2.0, rank: int = 3) -> np.ndarray:
    """Float[count, 20, 20], each of low rank; entries have this standard deviation, rows and columns the mean 0."""
    traits = np.random.default_rng((seed, 1)).normal(size=(2, count, len(AMINO_ACIDS), rank))
    first, second = traits - traits.mean(2, keepdims=True)  # what fields could say is left to them
    matrices = first @ second.transpose(0, 2, 1)
    return strength * matrices / matrices.std((1, 2), keepdims=True)


def fold(length: int, seed: int, strands: int = 5) -> np.ndarray:
    """Contacts of a synthetic fold: Int[C, 2], first < second: ladders between neighbouring strands of a sheet."""
    generator = np.random.default_rng((seed, 2))
    width = length // (strands + 1)
    starts = np.sort(generator.choice(length - strands * width + 1, strands)) + np.arange(strands) * width
    order = generator.permutation(strands)
    step = np.arange(width)
    pairs = set()
    for a, b in pairwise(order):
        other = starts[b] + (step if generator.random() < 0.3 else width - 1 - step)
        pairs |= {(min(i, j), max(i, j)) for i, j in zip(starts[a] + step, other) if abs(i - j) >= NEAREST}
    return np.array(sorted(pairs))


def family(length: int, seed: int, strength: float = 2.0, conserved: float = 0.3) -> Potts:
    """A synthetic family."""
    pairs = fold(length, seed)
    fields = conserved * np.random.default_rng((seed, 3)).normal(size=(length, len(AMINO_ACIDS)))
    return Potts(fields, pairs, couplings(len(pairs), seed, strength))


def letters(chains: np.ndarray) -> list[str]:
    """Chains as text."""
    return ["".join(AMINO_ACIDS[i] for i in chain) for chain in chains]


def families() -> list[Potts]:
    """The synthetic families that small runs are trained and judged on."""
    return [family(LENGTH, seed) for seed in range(FAMILIES)]


def write_families(file: Path) -> Path:
    """Chains of these families as FASTA, always the same, unless they are there."""
    if not file.is_file():
        made = [letters(each.sample(CHAINS, seed)) for seed, each in enumerate(families())]
        rows = [
            f">synthetic family {i} chain {n}\n{text}\n" for i, some in enumerate(made) for n, text in enumerate(some)
        ]
        atomic_write(file, "".join(rows))
    return file
