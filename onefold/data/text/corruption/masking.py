"""Masked language modelling (Devlin et al. 2018, arXiv 1810.04805, section 3.1): some tokens are hidden, and asked for.

Of those asked for most are hidden by a mask token, some are another token, and some stand as they are, so that a model
has to make up its mind about every token that it sees.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer

WORD_BEGINS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write a space in front
WORD_GOES_ON = "##"  # WordPiece


class Masking(Config):
    """How many tokens are asked for, and what stands in their place.

    `masks`: None is dynamic masking, other tokens in every epoch (RoBERTa, arXiv 1907.11692, section 4.1); k is static:
    a document has k masks, one for each epoch in turn.
    """

    rate: float = Field(default=0.15, gt=0, lt=1)  # of all tokens that are not special, each by itself
    masked: float = Field(default=0.8, ge=0, le=1)  # of these: behind a mask token
    random: float = Field(default=0.1, ge=0, le=1)  # of these: another token instead; the rest is left as it is
    masks: int | None = Field(default=None, ge=1)
    whole_words: bool = False  # all tokens of a word, or none

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.masked + self.random > 1:
            raise ValueError(f"masked ({self.masked}) and random ({self.random}) together exceed 1")
        return self


@dataclass(frozen=True)
class Maskable:
    """What masking has to know of a vocabulary."""

    mask: int
    ordinary: np.ndarray  # Bool[V]: not special
    goes_on: np.ndarray  # Bool[V]: in the same word as the token before

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Raises UserError when the tokenizer has no mask token."""
        if tokenizer.mask is None:
            raise UserError(
                "this tokenizer has no mask token; train one with data.tokenizer.special=…, or take an encoder's"
            )
        ordinary, goes_on = np.zeros(tokenizer.size, bool), np.zeros(tokenizer.size, bool)
        special = {*tokenizer.special.values(), tokenizer.start, tokenizer.end, tokenizer.mask}
        spaced = any(token.startswith(WORD_BEGINS) for token in tokenizer.vocabulary)
        for token, place in tokenizer.vocabulary.items():
            inner = not token.startswith(WORD_BEGINS) if spaced else token.startswith(WORD_GOES_ON)
            ordinary[place], goes_on[place] = place not in special, place not in special and inner
        return cls(tokenizer.mask, ordinary, goes_on)

    def words(self, tokens: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Int64[N]: where the word of each token begins. first: Bool[N], where a text does."""
        begins = first | ~self.goes_on[tokens]
        return np.maximum.accumulate(np.where(begins, np.arange(len(tokens)), 0))


def mask_tokens(
    tokens: np.ndarray, choice: np.ndarray, fate: np.ndarray, masking: Masking, maskable: Maskable
) -> tuple[np.ndarray, np.ndarray]:
    """(what is seen, Bool: what is asked for) of `tokens`, arrays of one shape.

    choice, fate: numbers in [0, 1) drawn for each token; tokens with one `choice` are asked for together or not at all.
    """
    asked = (choice < masking.rate) & maskable.ordinary[tokens]
    seen = np.where(asked & (fate < masking.masked), maskable.mask, tokens)
    swapped = asked & (fate >= masking.masked) & (fate < masking.masked + masking.random)
    others = np.flatnonzero(maskable.ordinary)
    place = (fate[swapped] - masking.masked) / (masking.random or 1) * len(others)
    seen[swapped] = others[np.minimum(place.astype(np.int64), len(others) - 1)]  # rounding may reach the end
    return seen, asked
