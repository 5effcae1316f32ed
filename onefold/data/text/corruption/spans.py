"""T5's spans (Raffel et al. 2019, arXiv 1910.10683, section 3.1.4): gaps in a text, each named by a sentinel.

    Thank you <0> me to your party <1> week          what is read
    <0> for inviting <1> last                        what is to be said

How many tokens are taken out, in how many spans, follows from a text's length alone; where, is drawn: what is kept and
what is taken out are each divided into spans, every division being equally likely, and the two kinds alternate.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.text.corruption.sequences import Noise, Sequences, compact
from onefold.data.text.tokenizers.tokenizer import Tokenizer


class Spans(Config):
    """How much is taken out. A text of fewer than two tokens is left whole."""

    kind: Literal["spans"] = "spans"
    rate: float = Field(default=0.15, gt=0, lt=1)  # of the tokens
    mean: float = Field(default=3.0, ge=1)  # tokens of a span

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens taken out, spans) of texts of these lengths, Int64[B] each."""
        lengths = np.asarray(lengths, np.int64)
        taken = np.clip(np.rint(lengths * self.rate).astype(np.int64), 1, np.maximum(lengths - 1, 1))
        spans = np.clip(
            np.rint(taken / self.mean).astype(np.int64), 1, np.maximum(np.minimum(taken, lengths - taken), 1)
        )
        whole = lengths < 2
        return np.where(whole, 0, taken), np.where(whole, 0, spans)

    def lengths(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what is read, what is to be said) of texts of these lengths, in tokens."""
        taken, spans = self.counts(lengths)
        return lengths - taken + spans, taken + spans

    def room(self, length: int) -> int:
        """The longest text of which no more than `length` tokens are to be read."""
        candidates = np.arange(1, int((length + 1) / (1 - self.rate)) + 3)
        return int(candidates[self.lengths(candidates)[0] <= length].max(initial=0))

    def widths(self, room: int) -> tuple[int, int]:
        """Tokens read, and said, of a text of `room`: at most."""
        read, said = self.lengths(np.arange(room + 1))
        return int(read.max()), int(said.max())

    def build(self, tokenizer: Tokenizer, room: int, pad: int) -> Noise:
        """Errors: UserError when the tokenizer has too few sentinels for texts of `room` tokens."""
        known, needed = tokenizer.sentinels, int(self.counts(np.arange(room + 1))[1].max())
        if needed > len(known):
            has = f"has {len(known)} sentinels" if known else "has no sentinels (<extra_id_0>, <extra_id_1>, …)"
            raise UserError(
                f"texts of {room} tokens have up to {needed} spans, and this tokenizer {has}: train one with "
                "data.tokenizer.sentinels=100, take a shorter context, or another noise"
            )
        sentinels = np.array(known)
        return lambda texts, borders, draws: corrupt_spans(texts, draws, self, sentinels, pad)


def corrupt_spans(
    texts: Sequences, draws: Draws, spans: Spans, sentinels: np.ndarray, pad: int
) -> tuple[Sequences, Sequences]:
    """(what is read, what is to be said), `pad` behind them.

    sentinels: Int[S], the ids of <extra_id_0>, <extra_id_1>, …, at least as many as a text has spans.
    """
    taken, count = spans.counts(texts.lengths)
    kept_parts = divided(texts.lengths - taken, count, draws.stream(1))
    taken_parts = divided(taken, count, draws.stream(2))
    parts = np.stack((kept_parts, taken_parts), axis=2).reshape(len(texts), -1)  # kept, taken, kept, …
    part = _part_of_each(parts, texts.tokens.shape[1])
    first = np.diff(part, axis=1, prepend=-1) > 0
    out = (part % 2 == 1) & (count > 0)[:, None]
    named = np.append(sentinels, pad)[np.minimum(part // 2, len(sentinels))]
    tokens = np.where(first, named, texts.tokens)
    begins, real = first & (count > 0)[:, None], texts.real
    read = compact(np.where(out, tokens, texts.tokens), (~out | begins) & real, pad)
    said = compact(np.where(out, texts.tokens, tokens), (out | begins) & real, pad)
    return read, said


def divided(totals: np.ndarray, counts: np.ndarray, draws: Draws) -> np.ndarray:
    """Int64[B, K]: each total as a sum of `counts` positive parts, every way equally likely; behind them zeros.

    Of the total - 1 places where a border may be, the counts - 1 with the smallest random numbers have one.
    """
    places = int(totals.max(initial=1)) - 1
    numbers = draws.uniform(places)
    numbers[np.arange(places) >= totals[:, None] - 1] = 2  # there is no such place
    borders = np.argsort(numbers, axis=1)[:, : max(int(counts.max(initial=1)) - 1, 0)] + 1
    borders = np.where(np.arange(borders.shape[1]) < counts[:, None] - 1, borders, totals[:, None])
    return np.diff(np.sort(borders, axis=1), axis=1, prepend=0, append=totals[:, None])


def _part_of_each(parts: np.ndarray, length: int) -> np.ndarray:
    """Int64[B, length]: the number of the part that each place lies in, parts of these lengths standing in a row."""
    ends = np.minimum(np.cumsum(parts, axis=1), length)
    marks = np.zeros((len(parts), length + 1), np.int64)
    np.add.at(marks, (np.arange(len(parts))[:, None], ends), 1)
    return np.cumsum(marks, axis=1)[:, :length]
