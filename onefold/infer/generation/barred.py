"""What may not be written next: a token that would repeat an n-gram (arXiv 1705.04304, section 2.5), and an end that
comes too early."""

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from onefold.infer.generation.padding import padded

NOTHING = -1  # stands before the texts that are shorter than others


class Barred:
    """Follows rows that grow together, and puts -inf where one may not go on.

    size: of the n-grams; 0: they may repeat. An n-gram counts wherever it stands in a row: in its prompt, in what was
    written, or across both. least: tokens before one of a row's `ends` may be written.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Sequence[Collection[int]],
        size: int,
        least: int,
        vocab: int,
        device: torch.device | str = "cpu",
    ):
        self.size, self.least, self.written = size, least, 0
        self.history = padded(prompts, NOTHING, left=True, device=device) if size else None  # Long[B, L]
        self.ends: Tensor | None = None  # Bool[B, V]
        if least:
            closing = torch.zeros(len(prompts), vocab, dtype=torch.bool)
            for row, ids in enumerate(ends):
                closing[row, [i for i in ids if i < vocab]] = True
            self.ends = closing.to(device)

    def __call__(self, scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Logits or log-probabilities of what comes next; what is barred does not pass its share on to the others."""
        if self.ends is not None and self.written < self.least:
            scores = scores.masked_fill(self.ends, -math.inf)
        if self.history is not None and self.history.shape[1] >= self.size:
            scores = scores.masked_fill(repeats(self.history, self.size, scores.shape[1]), -math.inf)
        return scores

    def write(self, chosen: Int[Tensor, " B"]) -> None:
        """The next token of each row."""
        self.written += 1
        if self.history is not None:
            self.history = torch.cat((self.history, chosen[:, None]), dim=1)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row rows[i] was."""
        self.history = None if self.history is None else self.history[rows]
        self.ends = None if self.ends is None else self.ends[rows]


def repeats(history: Int[Tensor, "B L"], size: int, vocab: int) -> Bool[Tensor, "B V"]:
    """The tokens that followed the last size - 1 ids of a row where these stood before; NOTHING is no token."""
    grams = history.unfold(1, size, 1)  # [B, L - size + 1, size]
    last = history[:, history.shape[1] - size + 1 :]
    after = grams[..., -1]
    same = (grams[..., :-1] == last[:, None]).all(-1) & (after != NOTHING)
    found = torch.zeros(len(after), vocab + 1, dtype=torch.bool, device=history.device)
    return found.scatter_(1, torch.where(same, after, vocab), True)[:, :vocab]
