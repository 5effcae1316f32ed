"""The letters of proteins as tokens: the vocabulary of ESM-1b and ESM-2, in their order."""

from collections.abc import Iterable
from typing import Literal

from onefold.core.config import Config
from onefold.data.text.tokenizers.files import one_letter_each
from onefold.data.text.tokenizers.tokenizer import Tokenizer

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"  # the twenty of the genetic code, the frequent ones first
LETTERS = AMINO_ACIDS + "XBUZO.-"  # unknown, D or N, selenocysteine, E or Q, pyrrolysine, and two signs for a gap
TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *LETTERS, "<null_1>", "<mask>")


class AminoAcids(Config):
    """A token a letter, as ESM numbers them."""

    kind: Literal["amino_acids"] = "amino_acids"

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        backend, roles = one_letter_each({token: i for i, token in enumerate(TOKENS)})
        return Tokenizer(backend, **roles)
