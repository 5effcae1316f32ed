"""Mixture of depths (Raposo et al., arXiv 2404.02258): a block that only some tokens go through.

    r = w · x + b for each token;  those with the largest r become x + r (block(x) - x), all others stay what they are

In training a fixed share of each row goes through, those whose r is largest ("expert choice"): shapes are known before,
and r learns since it weighs what the block adds. That looks at later tokens, too, so reading and writing go by a
*predictor*, which says of a token by itself whether it would be among them (section 3.5): r itself, drawn above or
below 0 by a cross-entropy, or a small network beside that has no part in what the model learns.

To the block, tokens that pass it by do not exist: nobody attends to them there, and they have no place in its cache.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.nn.adaptive.scalar import Scalar
from onefold.nn.attention import Layout
from onefold.nn.own_losses import Told


class MixtureOfDepthsConfig(Config):
    """`capacity`: the share of a row's tokens that go through in training, a token at least.

    predictor: "router" teaches r itself whether a token is among those, "beside" a network of its own, through which
    nothing is learned about the token. `weight`: of that loss, in nats per token.
    """

    capacity: Annotated[float, Field(gt=0, le=1)] = 0.125
    predictor: Literal["router", "beside"] = "router"
    weight: Annotated[float, Field(ge=0)] = 0.1

    def build(self, width: int) -> "MixtureOfDepths":
        return MixtureOfDepths(self, width)


class PassedCache:
    """Keys and values of those tokens of each row that went through, one behind the other.

    `k`, `v`: Float[B, kv_heads, room, head_width]; room grows with the row of which most tokens go through.
    """

    def __init__(self, shape: tuple[int, int, int], device=None, dtype=None):
        batch, heads, width = shape
        self.k = torch.zeros((batch, heads, 0, width), device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.passed = torch.zeros((batch, 0), dtype=torch.bool, device=device)  # [B, columns read]
        self.counts = self.passed.sum(1)

    @property
    def rows(self) -> int:
        return len(self.k)

    @property
    def device(self) -> torch.device:
        return self.k.device

    @property
    def bytes(self) -> int:
        """What it takes now: how much it will take depends on the text."""
        return self.k.nbytes + self.v.nbytes

    def reserve(self, columns: int) -> None:
        """Any number of columns can be taken back, by reading others in their place."""

    def read(self, passes: Bool[Tensor, "B T"], start: int) -> Int[Tensor, " B"]:
        """Note which of the columns start, start+1, … go through; how many of each row did before."""
        if start < self.passed.shape[1]:  # some were taken back
            self.passed = self.passed[:, :start]
            self.counts = self.passed.sum(1)
        before = self.counts
        self.passed, self.counts = torch.cat((self.passed, passes), 1), before + passes.sum(1)
        return before

    def at(self, slots: Int[Tensor, "B C"]) -> "Slots":
        """A cache whose next columns stand in these places."""
        room = int(slots.max()) + 1
        if (held := self.k.shape[2]) < room:
            more = room - held + max(room // 4, 32)
            self.k, self.v = F.pad(self.k, (0, 0, 0, more)), F.pad(self.v, (0, 0, 0, more))
        return Slots(self, slots, room)

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was (beams)."""
        self.k, self.v, self.passed, self.counts = (t[rows] for t in (self.k, self.v, self.passed, self.counts))


class Slots:
    """What attention writes to and reads from."""

    def __init__(self, cache: PassedCache, places: Int[Tensor, "B C"], room: int):
        self.cache, self.places, self.room = cache, places, room

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor, slice]:
        """As KVCache.extend."""
        places = self.places[:, None, :, None].expand_as(k)
        self.cache.k.scatter_(2, places, k)
        self.cache.v.scatter_(2, places, v)
        return self.cache.k[:, :, : self.room], self.cache.v[:, :, : self.room], slice(0, self.room)


class MixtureOfDepths(nn.Module):
    """Decides who goes through a block that it is given. While somebody listens (own_losses.py) it tells the
    predictor's loss and how often it is right, and the share of tokens that went through."""

    def __init__(self, config: MixtureOfDepthsConfig, width: int):
        super().__init__()
        self.config = config
        self.router = Scalar(width, std=1.0)
        self.predictor = None
        if config.predictor == "beside":
            self.predictor = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))
        self.told: list[Told] | None = None

    def forward(
        self,
        block: Callable[[Tensor, Layout, Slots | None], Tensor],
        causal: bool,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        state: PassedCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """causal: whether the block's tokens see those before them only."""
        _, T, D = x.shape
        r = self.router(x)
        chosen = r.detach().topk(max(1, math.ceil(self.config.capacity * T)), 1).indices if self._asks else None
        if self.training and state is None:
            places, passes = chosen.sort(1).values, None
        else:
            passes = self._predict(x, r) > 0
            if layout.pad is not None:
                columns = torch.arange(layout.start, layout.start + T, device=x.device)
                passes = passes & (columns >= layout.pad[:, None])
            most = int(passes.sum(1).max())
            if state is None:  # one, or processes that share its experts would wait for each other
                most = max(most, 1)
            ordered = passes.long().argsort(dim=1, descending=True, stable=True)  # first those that do, in order
            places = ordered[:, :most]
        if self.told is not None:
            self._tell(x, r, chosen, passes)
        before = None if state is None else state.read(passes, layout.start)
        if not places.shape[1]:
            return x
        index = places[..., None].expand(-1, -1, D)
        rows = x.gather(1, index)
        real = None if passes is None else passes.gather(1, places)
        inner, slots = self._layout(layout, places, real, causal, before), None
        if state is not None:
            slots = state.at(before[:, None] + torch.arange(places.shape[1], device=x.device))
        added = (block(rows, inner, slots) - rows) * r.gather(1, places)[..., None].to(x.dtype)
        if real is not None:
            added = added.masked_fill(~real[..., None], 0)
        return x.scatter(1, index, (rows + added).to(x.dtype))

    @property
    def _asks(self) -> bool:
        """Whether it matters which tokens training would take."""
        return self.training or self.told is not None

    def _predict(self, x: Tensor, r: Tensor) -> Float[Tensor, "B T"]:
        """Logits of being among those that training would take."""
        return r if self.predictor is None else self.predictor(x.detach())[..., 0].float()

    def _layout(
        self, layout: Layout, places: Tensor, real: Tensor | None, causal: bool, before: Tensor | None
    ) -> Layout:
        """Where those that go through stand. real: which of them do; None: all. before: places taken in the cache."""
        positions = layout.positions.expand(len(places), -1).gather(1, places)
        inner = Layout(positions, memory=layout.memory, memory_seen=layout.memory_seen)
        C = places.shape[1]
        own = torch.arange(C, device=places.device)
        if before is not None:  # of all in the cache, those up to the own place
            reach = before[:, None] + own
            inner.seen = (torch.arange(int(reach.max()) + 1, device=places.device) <= reach[..., None])[:, None]
            return inner
        if layout.segments is None and (causal or real is None):
            return inner  # those that do not go through stand behind those that do
        seen = own[:, None] >= own if causal else torch.ones(C, C, dtype=torch.bool, device=places.device)
        seen = seen[None]
        if real is not None:
            seen = seen & real[:, None] | (own[:, None] == own)  # with nothing to see attention would be NaN
        if layout.segments is not None:
            segments = layout.segments.gather(1, places)
            seen = seen & (segments[:, :, None] == segments[:, None])
        inner.seen = seen[:, None]
        return inner

    def _tell(self, x: Tensor, r: Tensor, chosen: Tensor, passes: Tensor | None) -> None:
        target = torch.zeros_like(r).scatter_(1, chosen, 1.0)
        logits = self._predict(x, r)
        losses = {}
        if torch.is_grad_enabled() and self.config.weight:
            losses = {"depth": (F.binary_cross_entropy_with_logits(logits, target), self.config.weight)}
        figures = {
            "passed": (target if passes is None else passes).float().mean(),
            "predicted": ((logits.detach() > 0) == target.bool()).float().mean(),
        }
        self.told.append(Told(r.numel(), losses, figures))
