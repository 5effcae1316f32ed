"""Skip-gram with negative sampling (Mikolov et al. 2013, arXiv 1301.3781 and 1310.4546)."""

from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import missing_extra
from onefold.data.text.words import WordCorpus

PIECE = 10_000  # words of a step
SCALE = 1 << 32


class SkipGramConfig(Config):
    """What word2vec's tool calls -cbow 0 -hs 0, with its defaults; numbers of the paper where they differ."""

    loss_unit: ClassVar = "nats per pair"
    kind: Literal["skipgram"] = "skipgram"
    width: int = Field(default=100, ge=1)  # paper: 300
    window: int = Field(default=5, ge=1)  # each word draws its own, from 1 to this
    negatives: int = Field(default=5, ge=0)  # paper: 5 to 20, 2 to 5 for large corpora
    epochs: int = Field(default=5, ge=1)
    rate: float = Field(default=0.025, gt=0, allow_inf_nan=False)
    final_rate: float = Field(default=1e-4, ge=0, allow_inf_nan=False)  # reached in a straight line
    subsample: float = Field(default=1e-3, ge=0, allow_inf_nan=False)  # paper: 1e-5; 0: every word stays
    power: float = Field(default=0.75, ge=0, allow_inf_nan=False)  # of a word's frequency among negatives

    def build(self, corpus: WordCorpus, folder: Path, seed: int) -> "SkipGram":
        return SkipGram(self, corpus, seed)


class SkipGram:
    """The two matrices and how a step changes them: a step is a piece of the corpus, the same one for the same number.

    `tensors` is all that steps change. A word's vector begins uniform in ±1/(2D), its context vector at zero.
    """

    unit = "words"

    def __init__(self, config: SkipGramConfig, corpus: WordCorpus, seed: int):
        self._kernel, self.config, self.corpus, self.seed = kernels().skipgram, config, corpus, seed
        counts = corpus.vocabulary.counts
        self.pieces = -(-len(corpus.stream) // PIECE)
        self.steps = self.pieces * config.epochs
        shape = (len(counts), config.width)
        vectors = np.random.default_rng(seed).random(shape, np.float32)
        vectors -= 0.5
        vectors /= config.width
        self.tensors = {"vectors": vectors, "contexts": np.zeros(shape, np.float32)}
        self._keep = np.minimum(keep_probability(counts, config.subsample) * SCALE, SCALE).astype(np.uint64)
        share, self._other = alias_table(counts**config.power)
        self._share = (share * SCALE).astype(np.uint64)
        self._orders: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def rate(self, step: int) -> float:
        return max(self.config.final_rate, self.config.rate * (1 - step / self.steps))

    def step(self, number: int) -> tuple[float, int, int]:
        """→ (loss, pairs of words that it was taken of, words read). May run in several threads at once."""
        epoch, place = divmod(number, self.pieces)
        piece = self.corpus.stream[int(self._order(epoch)[place]) * PIECE :][:PIECE]
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0]
        loss, pairs = self._kernel(
            np.asarray(piece),
            *(self.tensors["vectors"], self.tensors["contexts"]),
            *(self._keep, self._share, self._other),
            *(self.config.window, self.config.negatives, np.float32(self.rate(number)), seed),
        )
        return loss, pairs, int((piece >= 0).sum())

    def _order(self, epoch: int) -> np.ndarray:
        """Pieces are shuffled, so that the last ones, which count least, are not always the same."""
        kept = self._orders
        if kept[0] != epoch:
            kept = self._orders = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.pieces)
        return kept[1]

    def vectors(self) -> np.ndarray:
        """float32 [V, D]: those of the words, as word2vec gives them."""
        return self.tensors["vectors"]


def kernels() -> ModuleType:
    """The compiled loops.

    Errors: UserError where numba is not installed.
    """
    try:
        from onefold.training.words import kernels as word_kernels
    except ImportError:
        raise missing_extra("numba", "words", "training word vectors") from None
    return word_kernels


def keep_probability(counts: np.ndarray, threshold: float) -> np.ndarray:
    """How likely an occurrence of each word stays, as word2vec's tool has it: (√(f/t) + 1) · t/f.

    The paper's is √(t/f), which is t/f less. f: a word's share of all words.
    """
    if threshold == 0:
        return np.ones(len(counts))
    ratio = threshold * counts.sum() / counts
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share, other) to draw i with a probability in proportion to weights[i]: a uniform i stays with probability
    share[i], and becomes other[i] otherwise (Walker 1977, in Vose's order)."""
    share = weights * (len(weights) / weights.sum())
    other = np.arange(len(weights), dtype=np.int32)
    small, large = list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))
    while small and large:
        poor, rich = small.pop(), large[-1]
        other[poor] = rich
        share[rich] -= 1 - share[poor]
        if share[rich] < 1:
            small.append(large.pop())
    share[small + large] = 1  # all that is left would be 1 without rounding
    return share, other
