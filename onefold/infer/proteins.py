"""What an encoder of proteins says of chains of any length: a vector for each, and which of their residues touch.

A chain that is longer than the model reads is read in windows that overlap by half, and what several windows say of the
same residues is averaged.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from onefold.core.errors import UserError
from onefold.infer.generation.engine import device_of
from onefold.infer.generation.padding import padded
from onefold.infer.text_encoder import TextEncoder

TOGETHER = 64  # chains that are sorted by length, so that little is padded
PLACES = 2**20  # of pairs of tokens in one pass, so that the attention of a layer fits in memory


class Windows(NamedTuple):
    """Parts of chains, side by side. Row r is `lengths[r]` residues of chain `chains[r]` from `starts[r]` on."""

    chains: list[int]
    starts: list[int]
    lengths: list[int]
    tokens: Int[Tensor, "B T"]  # with what begins and ends a chain
    residues: Bool[Tensor, "B T"]
    segments: Int[Tensor, "B T"] | None  # what is padding


def windows(encoder: TextEncoder, sequences: Sequence[str], first: int = 0) -> Iterator[Windows]:
    """All of these chains, the short ones first; chain i is called first + i.

    Raises UserError where the model's tokens are not single residues.
    """
    tokenizer, longest = encoder.tokenizer, encoder.config.context - 2
    coded = tokenizer.encode_batch(sequences)
    for ids, sequence in zip(coded, sequences):
        if len(ids) != len(sequence) or not ids:
            raise UserError("this takes chains of amino acids and a model with a token for each, such as ESM-1b")
    parts = [(i, start) for i, ids in enumerate(coded) for start in starts(len(ids), longest)]
    parts.sort(key=lambda part: min(longest, len(coded[part[0]])))
    device = device_of(encoder.network)
    while parts:
        fits = 1  # more rows as long as the widest, the last, leaves room
        while fits < len(parts) and (fits + 1) * (min(longest, len(coded[parts[fits][0]])) + 2) ** 2 <= PLACES:
            fits += 1
        some, parts = parts[:fits], parts[fits:]
        lengths = [min(longest, len(coded[i]) - start) for i, start in some]
        chains = [coded[i][start : start + length] for (i, start), length in zip(some, lengths)]
        framed = [[tokenizer.start, *chain, tokenizer.end] for chain in chains]
        tokens = padded(framed, tokenizer.end if tokenizer.pad is None else tokenizer.pad)
        width = tokens.shape[1]
        column, each = torch.arange(width), torch.tensor(lengths)[:, None]
        residues = (column >= 1) & (column <= each)
        segments = (column > each + 1).long().to(device) if min(lengths) + 2 < width else None
        yield Windows(
            [first + i for i, _ in some],
            [start for _, start in some],
            lengths,
            tokens.to(device),
            residues.to(device),
            segments,
        )


def starts(length: int, longest: int) -> list[int]:
    """Where windows of at most `longest` residues begin that cover a chain and overlap by half or more."""
    if length <= longest:
        return [0]
    return [*range(0, length - longest, max(1, longest // 2)), length - longest]


@torch.no_grad()
def residue_features(encoder: TextEncoder, sequences: Sequence[str]) -> Iterator[Float[Tensor, "L D"]]:
    """A vector for each residue of each chain, in order, on the CPU."""
    for some in _portions(sequences):
        sums = [torch.zeros(len(sequence), encoder.config.width) for sequence in some]
        counts = [torch.zeros(len(sequence), 1) for sequence in some]
        for part in windows(encoder, some):
            features = encoder.network.features(part.tokens, None, part.segments).float().cpu()
            for row, (i, start, length) in enumerate(zip(part.chains, part.starts, part.lengths)):
                sums[i][start : start + length] += features[row, 1 : length + 1]
                counts[i][start : start + length] += 1
        for total, count in zip(sums, counts):
            yield total / count


def embed_chains(encoder: TextEncoder, sequences: Sequence[str]) -> Float[Tensor, "N D"]:
    """A vector for each chain, on the CPU: the mean of its residues'."""
    return torch.stack([features.mean(0) for features in residue_features(encoder, sequences)])


@torch.no_grad()
def contact_maps(encoder: TextEncoder, sequences: Sequence[str]) -> Iterator[Float[Tensor, "L L"]]:
    """How probably two residues of a chain touch, chain after chain, on the CPU.

    NaN for residues that lie too far apart to stand in one window. Raises UserError for a model without a contact head.
    """
    if not getattr(encoder.config, "contacts", False):
        raise UserError("this model has no contact head: fit one with `onefold proteins fit MODEL STRUCTURE…`")
    for some in _portions(sequences):
        sums = [torch.zeros(len(sequence), len(sequence)) for sequence in some]
        counts = [torch.zeros(len(sequence), len(sequence)) for sequence in some]
        for part in windows(encoder, some):
            found = encoder.network.contacts(part.tokens, part.residues, None, part.segments).float().cpu()
            for row, (i, start, length) in enumerate(zip(part.chains, part.starts, part.lengths)):
                own = slice(start, start + length)
                sums[i][own, own] += found[row, 1 : length + 1, 1 : length + 1]
                counts[i][own, own] += 1
        for total, count in zip(sums, counts):
            yield total / count  # 0 / 0 where nothing was said


def _portions(sequences: Sequence[str]) -> Iterator[Sequence[str]]:
    if isinstance(sequences, str):
        raise UserError("give a list of chains; for a single one, [chain]")
    for start in range(0, len(sequences), TOGETHER):
        yield sequences[start : start + TOGETHER]
