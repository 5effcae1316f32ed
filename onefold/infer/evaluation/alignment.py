"""Where a model of two texts looks while it writes: its attention to the source, word by word."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.engine import device_of, evaluating
from onefold.models.recurrent.seq2seq import RecurrentSeq2Seq
from onefold.models.seq2seq import Seq2Seq

END = "</s>"  # how the token that ends a source is shown


@dataclass(frozen=True)
class Alignment:
    """How much of each written word's attention went to each word of the source: every row adds up to 1."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "T S"]


def align(network: nn.Module, tokenizer: Tokenizer, source: str, target: str, layer: int | None = None) -> Alignment:
    """What `network` looks at while it writes `target`, as it would stand alone.

    layer: of the decoder, from 0; None: the last but one, whose mean over heads comes closest to what people align
    (arXiv 1909.02074, section 4). A word's row is the mean over its tokens, a column the sum. Raises UserError when the
    model has no attention to its source, or a text has no words.
    """
    if not source.split() or not target.split():
        raise UserError("there is nothing to align: a text has no words")
    (read, columns), (said, rows) = (_words(tokenizer, text) for text in (source, target))
    before, device = tokenizer.prefix, device_of(network)
    start = getattr(network.config, "start", None)
    start = tokenizer.decoder_start if start is None else start
    ids = torch.tensor([[*before, *read, tokenizer.end]], device=device)
    tokens = torch.tensor([[start, *before, *said]], device=device)
    with evaluating(network):
        weights = attention(network, ids, tokens, layer)[0]
    weights = weights[len(before) : len(before) + len(said)].float().cpu().numpy()  # row t writes the token after it
    names = [*source.split(), END]
    places = [*[0] * len(before), *columns, len(names) - 1]
    return Alignment(names, target.split(), _merged(weights, rows, places, len(target.split()), len(names)))


def attention(
    network: nn.Module, source: Int[Tensor, "B S"], tokens: Int[Tensor, "B T"], layer: int | None = None
) -> Float[Tensor, "B T S"]:
    """How much each of `tokens` takes from each token of its source, the mean over heads.

    Raises UserError when the model has no such attention, or no such layer.
    """
    if isinstance(network, RecurrentSeq2Seq) and network.config.attention:
        return network.attention(source, tokens)
    if not isinstance(network, Seq2Seq) or network.encoder is None:
        raise UserError(f"a {type(network).__name__} has no attention to a source that could be shown")
    blocks = network.decoder.blocks
    layer = max(0, len(blocks) - 2) if layer is None else layer
    if not 0 <= layer < len(blocks):
        raise UserError(f"there is no decoder layer {layer}: it has 0 to {len(blocks) - 1}")
    cross, seen = blocks[layer].cross, []

    def look(module: nn.Module, given: tuple) -> None:
        seen.append(module.weights(*given[:2]).mean(1))

    hook = cross.register_forward_pre_hook(look)
    try:
        network.features(source, tokens)
    finally:
        hook.remove()
    return seen[0]


def _words(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids of a text, and of which of its words each is a part; blanks are of the word that follows."""
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    names, at = text.split(), 0
    word = np.full(len(text) + 1, len(names) - 1)
    for number, name in enumerate(names):
        end = text.index(name, at) + len(name)
        word[at:end] = number
        at = end
    return encoded.ids, [int(word[max(0, end - 1)]) for _, end in encoded.offsets]


def _merged(
    weights: np.ndarray, rows: Sequence[int], columns: Sequence[int], height: int, width: int
) -> Float[np.ndarray, "T S"]:
    """Tokens as words: rows of a word averaged, columns added up."""
    down, across = np.zeros((height, len(rows))), np.zeros((len(columns), width))
    down[list(rows), np.arange(len(rows))] = 1
    across[np.arange(len(columns)), list(columns)] = 1
    return down @ weights @ across / np.maximum(1, down.sum(1, keepdims=True))
