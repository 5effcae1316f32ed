"""Contacts from an alignment of related chains by mean-field direct-coupling analysis: the baseline without learning.

Residues that touch change together; the inverse of the covariance of all positions tells direct from indirect ones
(Morcos et al. 2011, arXiv 1110.5223), scored by norms of couplings, corrected for what columns have in common (APC:
Dunn, Wahl and Gloor 2008; Ekeberg et al. 2013, arXiv 1211.1281).
"""

from collections.abc import Sequence

import numpy as np

from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import AMINO_ACIDS

STATES = len(AMINO_ACIDS) + 1  # and a gap, which stands for all that is no amino acid
ROWS = 1024  # chains that are compared with all others at once


def alignment(sequences: Sequence[str], where: str = "the alignment") -> np.ndarray:
    """UInt8[N, L]: residues as places in AMINO_ACIDS, gaps as 20. Raises UserError unless all are equally long."""
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(f"{where} holds chains of {len(lengths)} different lengths; align them first (aligned FASTA)")
    codes = np.full(256, STATES - 1, np.uint8)
    codes[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS))
    return codes[np.frombuffer("".join(sequences).encode("latin-1", "replace"), np.uint8)].reshape(len(sequences), -1)


def sequence_weights(chains: np.ndarray, identity: float = 0.8) -> np.ndarray:
    """Float[N]: 1 / how many chains (itself included) share at least `identity` of the columns of Int[N, L]."""
    seen = _one_hot(chains, STATES)
    alike = np.zeros(len(chains))
    for start in range(0, len(chains), ROWS):
        same = seen[start : start + ROWS] @ seen.T  # equal columns of each pair
        alike[start : start + ROWS] = (same >= identity * chains.shape[1] - 1e-3).sum(1)
    return 1 / alike


def mean_field(chains: np.ndarray, pseudocount: float = 0.5, identity: float = 0.8, states: int = STATES) -> np.ndarray:
    """Float[L, L], symmetric: how strongly two columns of Int[N, L] are coupled directly, by APC; 0 on the diagonal.

    pseudocount: the share of all counts that is uniform (λ/(λ + M) in the paper). Memory: 8 · (L · states)² bytes.
    """
    N, L = chains.shape
    inner = states - 1  # the last state is the gauge: its couplings are 0
    weights = sequence_weights(chains, identity)
    seen = _one_hot(chains, states).reshape(N, L, states)[:, :, :inner].reshape(N, -1)
    own = weights / weights.sum()
    single = (1 - pseudocount) * (own @ seen) + pseudocount / states
    pairs = (1 - pseudocount) * ((seen * own[:, None].astype(np.float32)).T @ seen).astype(np.float64)
    pairs += pseudocount / states**2
    for i in range(L):  # a column and itself: other residues never occur together
        block = slice(i * inner, (i + 1) * inner)
        pairs[block, block] = np.diag(single[block])
    couplings = -np.linalg.inv(pairs - np.outer(single, single)).reshape(L, inner, L, inner).transpose(0, 2, 1, 3)
    return average_product_corrected(_norms(couplings, states))


def average_product_corrected(scores: np.ndarray) -> np.ndarray:
    """Symmetric scores without what their row and column have of all, Float[L, L]; the diagonal is 0."""
    scores = scores * ~np.eye(len(scores), dtype=bool)
    each = scores.sum(0)
    corrected = scores - np.outer(each, each) / (each.sum() or 1)
    np.fill_diagonal(corrected, 0)
    return corrected


def _norms(couplings: np.ndarray, states: int) -> np.ndarray:
    """Frobenius norms of couplings [L, L, states - 1, states - 1], in the gauge where rows and columns sum to zero.

    What is coupled to a gap does not count.
    """
    mean = couplings.sum(3, keepdims=True) / states
    whole = couplings - mean - couplings.sum(2, keepdims=True) / states + mean.sum(2, keepdims=True) / states
    return np.sqrt((whole**2).sum((2, 3)))


def _one_hot(chains: np.ndarray, states: int) -> np.ndarray:
    """Float32[N, L · states]"""
    return (chains[:, :, None] == np.arange(states)).reshape(len(chains), -1).astype(np.float32)
