"""Two texts a row, one to read and one to say, as a batch for an encoder and a decoder."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onefold.core.batch import Seq2SeqBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.ahead import to_tensor
from onefold.data.text.corruption.sequences import Sequences
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.tokenizers.tokenizer import Tokenizer

COLUMNS = 8  # widths are a multiple of this: fewer different shapes


@dataclass(frozen=True)
class Examples:
    """The rows of an epoch, in order: how many, and what makes (what is read, what is to be said) of some of them."""

    count: int
    sides: Callable[[np.ndarray], tuple[Sequences, Sequences]]  # of rows Int64[B], 0…count - 1


def seq2seq_batch(
    read: Sequences, said: Sequences, start: int, pad: int, most: tuple[int, int] | None = None
) -> Seq2SeqBatch:
    """The batch of these rows, as they stand between the tokens that begin and end them.

    start: what the decoder begins with. most: tokens that any text may have (read, said), where that is known: batches
    are no wider. A row with nothing to say counts for nothing.
    """
    most = most or (1 << 62, 1 << 62)
    source, targets = (_widened(rows.tokens, limit, pad) for rows, limit in zip((read, said), most))
    weights = np.arange(targets.shape[1]) < said.lengths[:, None]
    padding = np.arange(source.shape[1]) >= read.lengths[:, None]
    tokens = np.concatenate((np.full((len(said), 1), start, np.int64), targets[:, :-1]), axis=1)
    return Seq2SeqBatch(
        source=to_tensor(source),
        source_segments=to_tensor(padding.astype(np.int64)) if padding.any() else None,
        tokens=to_tensor(tokens),
        targets=to_tensor(targets),
        weights=to_tensor(weights.astype(np.float32)),
    )


def fit_seq2seq(model: Config, tokenizer: Tokenizer, length: int, grow: bool) -> Config:
    """The model's config for rows of at most `length` of these tokens a side, as `fit_tokens` makes it.

    Its decoder begins where that of the tokenizer does, which is how the batches are made.

    Errors: UserError also when it does not read one text to write another.
    """
    if "start" not in type(model).model_fields:
        kind = getattr(model, "kind", "stranger")
        raise UserError(f"these data need a model that reads one text and writes another, not a {kind}")
    first = tokenizer.prefix[0] if tokenizer.prefix else None
    return fit_tokens(model, tokenizer, length, grow).but({"start": tokenizer.decoder_start, "first": first})


def _widened(tokens: np.ndarray, most: int, pad: int) -> np.ndarray:
    width = max(1, min(-(-tokens.shape[1] // COLUMNS) * COLUMNS, most))
    return np.pad(tokens, ((0, 0), (0, max(0, width - tokens.shape[1]))), constant_values=pad)
