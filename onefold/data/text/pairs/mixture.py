"""Several tasks told as text, learned by one model (Raffel et al. 2019, arXiv 1910.10683, sections 2.4 and 3.5.2).

A part, be it pairs of texts or corrupted documents, gives rows of (what is read, what is to be said) and goes round and
round at its own pace: an epoch of the mixture takes from each the rows that come next, as many as its share, and
spreads them evenly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.random import Generator, default_rng
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.batch import Batch, Seq2SeqBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.data.loader import Evaluation, Loader
from onefold.data.prepared import SPLITS, Split
from onefold.data.text.corruption.sequences import Sequences, merged
from onefold.data.text.denoising import DenoisingDataset, DenoisingTextData
from onefold.data.text.pairs.seq2seq import Examples, seq2seq_batch
from onefold.data.text.pairs.text_pairs import TextPairsData, TextPairsDataset
from onefold.data.text.plan import spread
from onefold.data.text.tokenizers.tokenizer import Tokenizer

HELD = 4  # plans of a part's epochs at a time: a small part goes round many times in an epoch of all


class Part(Config):
    """One task."""

    data: Annotated[TextPairsData | DenoisingTextData, Slot()]
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # of its rows, relative to other parts'


class MixtureData(Config):
    """Tasks and their shares: by `weight`, or, where none has one, by how many rows each has, at most `cap`.

    All have the tokenizer of the first part, which therefore should be the one with the most text.
    """

    kind: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1)
    cap: int | None = Field(default=None, ge=1)  # examples-proportional mixing with an artificial limit: T5's K

    @model_validator(mode="after")
    def _weights_for_all(self) -> Self:
        given = [part.weight is not None for part in self.parts]
        if any(given) != all(given):
            raise PydanticCustomError("weights", "give every part a weight, or none")
        if any(given) and self.cap is not None:
            raise PydanticCustomError("weights", "parts have weights, so `cap` decides nothing: leave it out")
        return self

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "MixtureDataset":
        """Every part as it prepares itself, in the same folder. Raises UserError as they do."""
        parts: list[TextPairsDataset | DenoisingDataset] = []
        for part in self.parts:
            parts.append(part.data.prepare(folder, tokenizer, keep))
            tokenizer = parts[0].tokenizer
        return MixtureDataset(parts, [part.weight for part in self.parts], self.cap)


@dataclass(frozen=True)
class Turns:
    """What an epoch takes from one part: its rows from `begin` on, counted over all of the part's own epochs.

    `count`: rows of each of these; `examples(epoch)` may have a few more or less, being cut elsewhere.
    """

    begin: int
    count: int
    examples: Callable[[int], Examples]

    def sides(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Sequences, Sequences]]:
        """(which of `numbers`, what is read, what is to be said), epoch by epoch."""
        epochs, rows = np.divmod(self.begin + numbers, self.count)
        for epoch in np.unique(epochs):
            own, examples = np.flatnonzero(epochs == epoch), self.examples(int(epoch))
            yield own, *examples.sides(rows[own] % examples.count)


@dataclass(frozen=True)
class MixturePlan:
    """Rows of one epoch, in batches of `rows`: row r is the one with this number among those taken from its part."""

    turns: tuple[Turns, ...]
    part: np.ndarray  # Int64[R]
    number: np.ndarray  # Int64[R]
    rows: int

    @classmethod
    def of(cls, turns: Iterable[Turns], counts: Sequence[int], rows: int, generator: Generator) -> Self:
        """So many rows from each part, spread evenly."""
        part = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = spread(np.arange(len(part)), part, generator)
        return cls(tuple(turns), part[order], number[order], rows)

    @property
    def batches(self) -> int:
        return -(-len(self.part) // self.rows)

    def sides(self, rows: slice) -> Iterator[tuple[np.ndarray, Sequences, Sequences]]:
        """(which of these rows, what is read, what is to be said); behind the last row the first ones come again."""
        places = np.arange(rows.start, rows.stop) % len(self.part)
        part, number = self.part[places], self.number[places]
        for p in np.unique(part):
            mine = np.flatnonzero(part == p)
            yield from ((mine[own], read, said) for own, read, said in self.turns[p].sides(number[mine]))


class MixtureDataset:
    """What `prepare` returns. A row is a function of seed and epoch, whatever the number of processes."""

    batch: type[Batch] = Seq2SeqBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()  # of what a model names

    def __init__(
        self, parts: Sequence[TextPairsDataset | DenoisingDataset], weights: Sequence[float | None], cap: int | None
    ):
        self.parts, self._weights, self._cap = parts, weights, cap
        self.processor = self.tokenizer = parts[0].tokenizer
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0
        hashed = blake2b("".join(part.facts["hash"] for part in parts).encode(), digest_size=8).hexdigest()
        self.facts: dict[str, Any] = {"hash": hashed, "vocab": self.tokenizer.size}

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, int] | None = None
    ) -> Loader[MixturePlan, Seq2SeqBatch]:
        """Endless batches of `rows` rows over all processes; every stretch of them holds all parts in their shares."""
        self._check(split)
        return Loader(partial(self.plan, split, rows, seed), self._batch, rows, rank, world, state)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> MixturePlan:
        """What the loader reads in an epoch: with weights as many rows as there are, else as many as count."""
        counts = [part.examples(split, seed, 0).count for part in self.parts]
        limits = [min(count, self._cap or count) for count in counts]
        weights = [Fraction(n if w is None else w) * (n > 0) for n, w in zip(limits, self._weights)]
        paces = [sum(limits) * weight / sum(weights) for weight in weights]
        spans = [(int(pace * epoch), int(pace * (epoch + 1))) for pace in paces]
        turns = (
            Turns(low, n, lru_cache(HELD)(partial(part.examples, split, seed)))
            for part, (low, _), n in zip(self.parts, spans, counts)
        )
        return MixturePlan.of(turns, [high - low for low, high in spans], rows, default_rng((seed, epoch)))

    def evaluation(self, split: Split, rows: int) -> Evaluation[MixturePlan, Seq2SeqBatch]:
        """Every row of all parts once, always in the same order, of which any beginning is a fair sample."""
        self._check(split)
        every = [part.examples(split, None, 0) for part in self.parts]
        counts = [examples.count for examples in every]
        turns = (Turns(0, some.count, lambda _, some=some: some) for some in every)
        return Evaluation(MixturePlan.of(turns, counts, rows, default_rng(0)), self._batch, sum(counts), rows)

    def size(self, split: Split) -> int:
        """Tokens."""
        return sum(part.size(split) for part in self.parts)

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config for all parts. Raises UserError as they do."""
        for part in self.parts:
            model = part.fit(model, grow)
        return model

    def _batch(self, planned: MixturePlan, rows: slice) -> Seq2SeqBatch:
        places, read, said = zip(*planned.sides(rows))
        sides = (merged(side, places, self._pad) for side in (read, said))
        return seq2seq_batch(*sides, self.tokenizer.decoder_start, self._pad)

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.size(split):
            raise UserError(f"the {split} split of every part is empty")
