import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.proteins.potts import Potts, couplings, family, letters
from onefold.infer.evaluation.contact_precision import precision
from onefold.infer.evaluation.couplings import alignment, mean_field, sequence_weights


def test_letters_become_places_and_all_else_gaps():
    assert alignment(["LAC", "-XB"]).tolist() == [[0, 1, 19], [20, 20, 20]]
    with pytest.raises(UserError, match="2 different lengths"):
        alignment(["LAC", "LA"])


def test_alike_chains_share_one_weight():
    chains = np.array([[0] * 10, [0] * 8 + [1, 1], [0] * 7 + [2, 2, 2], [3] * 10])
    assert sequence_weights(chains).tolist() == [1 / 2, 1 / 2, 1, 1]
    assert sequence_weights(chains, identity=0.7).tolist() == [1 / 3, 1 / 3, 1 / 3, 1]


def test_couplings_are_those_of_the_formula():
    """Entry by entry, as Morcos et al. (2011) write it, for three columns and three states."""
    generator, q, share = np.random.default_rng(0), 3, 0.4
    chains = generator.integers(q, size=(40, 3))
    weights = np.array([1 / sum((a == b).mean() >= 0.8 for b in chains) for a in chains])
    total = weights.sum()

    def single(i, a):
        return share / q + (1 - share) * sum(w for w, c in zip(weights, chains) if c[i] == a) / total

    def pair(i, a, j, b):
        if i == j:
            return single(i, a) if a == b else 0.0
        joint = sum(w for w, c in zip(weights, chains) if c[i] == a and c[j] == b) / total
        return share / q**2 + (1 - share) * joint

    places = [(i, a) for i in range(3) for a in range(q - 1)]
    covariance = np.array([[pair(i, a, j, b) - single(i, a) * single(j, b) for j, b in places] for i, a in places])
    inverse = -np.linalg.inv(covariance)
    norms = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            if i != j:
                whole = np.zeros((q, q))
                whole[: q - 1, : q - 1] = inverse[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                whole = whole - whole.mean(0) - whole.mean(1)[:, None] + whole.mean()
                norms[i, j] = np.sqrt((whole[: q - 1, : q - 1] ** 2).sum())
    expected = norms - np.outer(norms.sum(0), norms.sum(0)) / norms.sum()
    found = mean_field(chains, pseudocount=share, states=q)
    np.testing.assert_allclose(found, expected * ~np.eye(3, dtype=bool), atol=1e-6)


def test_known_contacts_of_a_synthetic_family_are_found():
    made = family(30, seed=1, strength=1.2, conserved=0.5)
    found = mean_field(alignment(letters(made.sample(600, seed=0, sweeps=20))))
    assert precision(found, made.contacts(), share=len(made.pairs) / made.length) > 0.9
    shuffled = made.sample(600, seed=0, sweeps=20)
    for column in shuffled.T:
        np.random.default_rng(int(column[0])).shuffle(column)  # conserved as before, no longer coupled
    assert precision(mean_field(shuffled), made.contacts(), share=len(made.pairs) / made.length) < 0.3


def test_sampled_chains_have_the_probabilities_of_their_model():
    """Three positions, two of them in contact: all 8,000 states can be counted."""
    made = Potts(np.random.default_rng(0).normal(size=(3, 20)), np.array([[0, 2]]), couplings(1, 0, 1.0))
    energy = (
        made.fields[0][:, None, None]
        + made.fields[1][None, :, None]
        + made.fields[2][None, None, :]
        + made.couplings[0][:, None, :]
    )
    exact = np.exp(energy) / np.exp(energy).sum()
    chains = made.sample(40_000, seed=1, sweeps=20)
    counts = np.zeros((20, 20))
    np.add.at(counts, (chains[:, 0], chains[:, 2]), 1 / len(chains))
    assert abs(counts - exact.sum(1)).max() < 5e-3
    assert abs(np.bincount(chains[:, 1], minlength=20) / len(chains) - exact.sum((0, 2))).max() < 1e-2
