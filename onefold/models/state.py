"""What a decoder remembers while it writes: all layers at once."""

import torch
from jaxtyping import Int
from torch import Tensor

from onefold.core.errors import UserError
from onefold.nn.adaptive.mixture_of_depths import PassedCache
from onefold.nn.attention import KVCache, Layout
from onefold.nn.cross import KeysValues
from onefold.nn.states.state_spaces import Recurrence


class DecoderState:
    """What a decoder remembers of the columns it has read: a cache, or a recurrence's state, for each layer.

    Of layers that are repeated, for each of each step.
    """

    def __init__(self, layers: list[KVCache | PassedCache | Recurrence], capacity: int, prefix: bool = False):
        """prefix: what is read first is seen whole by each of its tokens, so it must be read at once."""
        self.layers, self.capacity, self.prefix = layers, capacity, prefix
        self.length = 0  # columns read, padding included
        self.pad: Tensor | None = None  # Long[B]: leading columns that are padding
        self.beams = 1  # rows that share a memory
        self.memory: list[KeysValues | None] = [None] * len(layers)  # what cross-attention looks at
        self.memory_seen: Tensor | None = None  # Bool[B / beams, 1, 1, S]

    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def reserve(self, columns: int) -> None:
        """Before anything is read: make it possible to `forget` so many columns at a time.

        Errors: UserError for a model whose layers cannot.
        """
        for layer in self.layers:
            if not hasattr(layer, "reserve"):
                raise UserError("this model remembers texts as a whole and cannot take tokens back, as drafts need it")
            layer.reserve(columns)

    def forget(self, columns: int) -> None:
        """Take back the newest columns, as if they had never been read: no more than were reserved, counted from the
        furthest that was ever read."""
        self.length -= columns

    def fork(self, beams: int) -> None:
        """Every row becomes so many, one beside the other, which go on sharing what cross-attention looks at."""
        rows = torch.arange(self.rows, device=self.layers[0].device).repeat_interleave(beams)
        self._reorder(rows)
        self.beams *= beams

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was. After `fork`, the beams of a row stay together, in any order."""
        before = self.rows // self.beams
        self._reorder(rows)
        if not any(self.memory):
            return
        sources = rows[:: self.beams] // self.beams
        if len(sources) < before or not torch.equal(sources, torch.arange(before, device=rows.device)):
            self.memory = [kv and (kv[0].mT[sources].mT, kv[1][sources]) for kv in self.memory]
            self.memory_seen = None if self.memory_seen is None else self.memory_seen[sources]

    @property
    def rows(self) -> int:
        return self.layers[0].rows

    def _reorder(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.reorder(rows)
        self.pad = None if self.pad is None else self.pad[rows]

    def layout(self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None) -> Layout:
        """Where the next tokens stand. Positions of -1 mark padding, which may only lead a row."""
        T = tokens.shape[1]
        if self.length + T > self.capacity:
            raise UserError(f"{self.length + T} tokens do not fit a cache made for {self.capacity}")
        if positions is not None and bool((positions < 0).any()):
            pad = (positions < 0).sum(1)
            self.pad = pad if self.pad is None else self.pad + pad
        columns = torch.arange(self.length, self.length + T, device=tokens.device)[None]
        truth = columns if self.pad is None else (columns - self.pad[:, None]).clamp(min=0)
        prefix = torch.ones_like(tokens, dtype=torch.bool) if self.prefix and not self.length else None
        return Layout(truth, start=self.length, pad=self.pad, prefix=prefix, memory_seen=self.memory_seen)
