"""Tokens that are words between blanks: for sequences of symbols, levels or numbers that are texts only to be read."""

from collections.abc import Iterable
from typing import Literal

from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from onefold.core.config import Config
from onefold.data.text.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

UNKNOWN = "<unk>"


class Symbols(Config):
    """A token for each word between blanks; nothing is put around a text."""

    kind: Literal["symbols"] = "symbols"

    def build(self, texts: Iterable[str]) -> Tokenizer:
        """With the words of these texts."""
        return of_symbols(sorted({word for text in texts for word in text.split()}))


def of_symbols(words: Iterable[str]) -> Tokenizer:
    """With these words, in this order, behind a token that ends and pads and one for words that nobody named."""
    special = (END_OF_TEXT, UNKNOWN)
    names = [*special, *(word for word in words if word not in special)]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return Tokenizer(backend, bos=END_OF_TEXT, eos=END_OF_TEXT, pad=END_OF_TEXT)
