"""GloVe (Pennington, Socher and Manning 2014): a weighted least-squares fit of word vectors to log co-occurrences."""

import threading
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.files import atomic_folder, verify_folder
from onefold.core.progress import Progress
from onefold.data.prepared import folder_name
from onefold.data.text.words import WordCorpus
from onefold.training.words.skipgram import kernels

PAIR = np.dtype([("first", "<i4"), ("second", "<i4"), ("count", "<f4")])
BUCKETS = 64  # of the pairs by hash, each of which is read whole
PIECE = 50_000  # pairs of a step
SLOT = 16  # bytes of the table for a pair
READ = 1 << 20  # words that are counted at once


class GloveConfig(Config):
    """Defaults of the authors' tool; the paper's where they differ."""

    loss_unit: ClassVar = "weighted squared error"
    kind: Literal["glove"] = "glove"
    width: int = Field(default=100, ge=1)  # paper: 300 for its best
    window: int = Field(default=15, ge=1)  # on both sides; a pair counts 1/distance. Paper: 10
    epochs: int = Field(default=25, ge=1)  # paper: 50 below width 300, else 100
    rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    ceiling: float = Field(default=100.0, gt=0, allow_inf_nan=False)  # count from which a pair's weight is 1
    power: float = Field(default=0.75, ge=0, allow_inf_nan=False)
    memory: float = Field(default=1.0, gt=0, le=1024)  # GB for counting; what does not fit goes to disk in between

    def build(self, corpus: WordCorpus, folder: Path, seed: int) -> "Glove":
        return Glove(self, corpus, folder, seed)


class Glove:
    """Words' and contexts' vectors, AdaGrad's memory, and how a step changes them.

    A step is a piece of the shuffled pairs, the same one for the same number. `tensors` is all that steps change;
    biases are the last column. All begin uniform in ±1/(2(D + 1)), the memory at 1.
    """

    unit = "pairs"

    def __init__(self, config: GloveConfig, corpus: WordCorpus, folder: Path, seed: int):
        self._kernel = kernels().glove
        self.config, self.corpus, self.seed = config, corpus, seed
        self.folder = count(corpus, config.window, config.memory, folder)
        self._pieces = np.array([-(-_bucket(self.folder, b).stat().st_size // (PAIR.itemsize * PIECE)) for b in _all()])
        self.steps = int(self._pieces.sum()) * config.epochs
        random, shape = np.random.default_rng(seed), (len(corpus.vocabulary), config.width + 1)
        self.tensors = {n: (random.random(shape, np.float32) - 0.5) / shape[1] for n in ("vectors", "contexts")}
        self.tensors |= {f"{n}_memory": np.ones(shape, np.float32) for n in ("vectors", "contexts")}
        self._read: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def rate(self, step: int) -> float:
        return self.config.rate

    def step(self, number: int) -> tuple[float, int, int]:
        """→ (loss, entries of the matrix that it was taken of, and again). May run in several threads at once."""
        pairs, t, config = self.pairs(number), self.tensors, self.config
        loss, seen = self._kernel(
            *(np.ascontiguousarray(pairs[name]) for name in ("first", "second", "count")),
            *(t["vectors"], t["contexts"], t["vectors_memory"], t["contexts_memory"]),
            *(config.rate, config.ceiling, config.power),
        )
        return loss, seen, seen

    def pairs(self, number: int) -> np.ndarray:
        """What a step reads, PAIR [N], in its order."""
        epoch, piece = divmod(number, int(self._pieces.sum()))
        order = np.random.default_rng((self.seed, epoch)).permutation(BUCKETS)
        ends = np.cumsum(self._pieces[order])
        place = int(np.searchsorted(ends, piece, "right"))
        inside = piece - int(ends[place] - self._pieces[order[place]])
        return self._bucket(epoch, int(order[place]))[inside * PIECE : (inside + 1) * PIECE]

    def vectors(self) -> np.ndarray:
        """float32 [V, D]: the sum of both vectors of a word, without biases."""
        return self.tensors["vectors"][:, :-1] + self.tensors["contexts"][:, :-1]

    def _bucket(self, epoch: int, bucket: int) -> np.ndarray:
        """The pairs of a bucket in the epoch's order; the two last ones are kept."""
        with self._lock:
            if (epoch, bucket) not in self._read:
                pairs = np.fromfile(_bucket(self.folder, bucket), PAIR)
                np.random.default_rng((self.seed, epoch, bucket)).shuffle(pairs)
                self._read = dict([*self._read.items()][-1:]) | {(epoch, bucket): pairs}
            return self._read[epoch, bucket]


def count(corpus: WordCorpus, window: int, memory: float, folder: Path) -> Path:
    """Count pairs of words, 1/distance each, in a table of `memory` GB; → a folder with a file for each bucket.

    A table that is full is emptied into the buckets' files; at the end those are summed one by one. A pair
    (a, b) stands for (b, a) too.
    """
    target = folder / folder_name("pairs", {"corpus": corpus.facts, "window": window})
    if target.is_dir() and not verify_folder(target):
        return target
    stream, vocab, kernel = corpus.stream, len(corpus.vocabulary), kernels().count_pairs
    wanted = min(memory * 1e9 / SLOT, 2 * len(stream) * window + 4 * window + 64)
    slots = 1 << max(8 + window.bit_length(), int(np.log2(wanted)))
    keys, counts, filled = np.zeros(slots, np.uint64), np.zeros(slots), 0
    with atomic_folder(target) as out, Progress("counting pairs", len(stream), "words") as bar:
        for first in range(0, len(stream), READ):
            # Windows look back, so a part begins a window early.
            before = max(0, first - window)
            part = np.asarray(stream[before : first + READ])
            done = first - before
            while done < len(part):
                done, filled = kernel(part, done, window, vocab, keys, counts, filled)
                if done < len(part):
                    _empty(keys, counts, vocab, out)
                    filled = 0
            bar.update(len(part) - (first - before))
        _empty(keys, counts, vocab, out)
        for bucket in _all():
            _sum(_bucket(out, bucket), vocab)
    return target


def _empty(keys: np.ndarray, counts: np.ndarray, vocab: int, folder: Path) -> None:
    """Append what is in the table to the files of its buckets, and clear it."""
    used = np.flatnonzero(keys)
    pairs = _pairs(keys[used] - 1, counts[used], vocab)
    buckets = (keys[used] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58)
    order = np.argsort(buckets, kind="stable")
    ends = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
    for bucket in _all():
        with _bucket(folder, bucket).open("ab") as file:
            pairs[order[ends[bucket] : ends[bucket + 1]]].tofile(file)
    keys[:] = 0
    counts[:] = 0


def _sum(file: Path, vocab: int) -> None:
    """Add up the entries of each pair."""
    pairs = np.fromfile(file, PAIR)
    keys, place = np.unique(pairs["first"].astype(np.int64) * vocab + pairs["second"], return_inverse=True)
    _pairs(keys, np.bincount(place, pairs["count"], len(keys)), vocab).tofile(file)


def _pairs(keys: np.ndarray, counts: np.ndarray, vocab: int) -> np.ndarray:
    pairs = np.empty(len(keys), PAIR)
    pairs["first"], pairs["second"], pairs["count"] = keys // vocab, keys % vocab, counts
    return pairs


def _bucket(folder: Path, bucket: int) -> Path:
    return folder / f"{bucket}.pairs"


def _all() -> range:
    return range(BUCKETS)
