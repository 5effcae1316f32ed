"""Attention: many heads or grouped ones, a window or none, a cache or none, in one short forward.

Tokens stand in *columns* 0, 1, 2, … of their row; a cache keeps the columns already read. Rows of different length are
padded on the left, so two tokens of a row are as far apart as their columns: causality, windows and ALiBi need columns
only, and rotary angles are the only place where true positions count.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.nn.linear import Linear
from onefold.nn.norm import RMSNormConfig
from onefold.nn.position import AlibiConfig, RelativeBias, RelativeBiasConfig, RotaryConfig, rotate, turns

FEW = 4  # rows up to which a CPU's fused attention kernel decodes faster than two products
NEWEST = 12  # tokens up to which it is faster where the heads of a group are rows of one query matrix


@dataclass
class Layout:
    """Where the tokens of one forward pass stand: shared by all layers, which memoise what they derive from it."""

    positions: Int[Tensor, "#B T"]  # within the token's own document
    start: int = 0  # columns already in the cache
    pad: Int[Tensor, " B"] | None = None  # how many leading columns of each row are padding
    segments: Int[Tensor, "B T"] | None = None  # attention stays inside a segment
    prefix: Bool[Tensor, "B T"] | None = None  # tokens that causal attention, too, may look ahead at; nothing is cached
    bias: Float[Tensor, "#B H T S"] | None = None  # trained, shared by all layers; -inf where nobody looks
    seen: Bool[Tensor, "B 1 T S"] | None = None  # who looks at whom, where that does not follow from columns
    memory: Float[Tensor, "B S D"] | None = None  # what cross-attention looks at…
    memory_seen: Bool[Tensor, "B 1 1 S"] | None = None  # …and where there is something; None: everywhere
    memo: dict = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def relate(self, relative: RelativeBias, causal: bool) -> None:
        """Set the bias of the layers to come, from all columns so far."""
        keys = slice(0, self.start + self.length)
        seen = self.mask(keys, None, causal)
        self.bias = relative(self.distance(keys)).masked_fill(~seen, -torch.inf)

    def rotation(self, rotary: RotaryConfig, name: str, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What heads of this width are turned by, two of [B|1, T, 1, turned]; `name` tells rotary configs apart."""
        if name not in self.memo:
            self.memo[name] = turns(rotary.angles(self.positions, width), dtype)
        return self.memo[name]

    def mask(self, keys: "slice | Tensor", window: int | None, causal: bool) -> Bool[Tensor, "B 1 T S"] | None:
        """Who may look at whom; None when the answer is "all" or, without a cache, "all before" (plain causal).

        `keys` are the columns of the keys: a range without gaps, or a tensor where a ring has turned.
        """
        if self.seen is not None:
            return self.seen
        key = ("mask", self._name(keys), window, causal)
        if key not in self.memo:
            self.memo[key] = self._mask(keys, window, causal)
        return self.memo[key]

    def group_mask(
        self, keys: "slice | Tensor", window: int | None, causal: bool, group: int, dtype: torch.dtype
    ) -> Float[Tensor, "B 1 R S"]:
        """The mask as what is added to scores, R = group · T: heads stand below each other; see `attend_newest`."""
        key = ("group", self._name(keys), window, causal, group, dtype)
        if key not in self.memo:
            seen = self.mask(keys, window, causal)
            self.memo[key] = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf).repeat(1, 1, group, 1)
        return self.memo[key]

    @staticmethod
    def _name(keys: "slice | Tensor") -> object:
        return (keys.start, keys.stop) if isinstance(keys, slice) else "ring"

    def distance(self, keys: "slice | Tensor") -> Int[Tensor, "T S"]:
        """How many columns each query stands behind each key."""
        device = self.positions.device
        queries = torch.arange(self.start, self.start + self.length, device=device)
        if isinstance(keys, slice):
            keys = torch.arange(keys.start, keys.stop, device=device)
        return queries[:, None] - keys

    def _mask(self, keys, window, causal):
        distance = self.distance(keys)
        seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            seen = seen & (distance.abs() < window)
        seen = seen[None, None]
        if causal and self.prefix is not None:
            ahead = self.prefix[:, None, None]
            seen = seen | (ahead if window is None else ahead & (distance.abs() < window))
        if self.segments is not None:
            seen = seen & (self.segments[:, None, :, None] == self.segments[:, None, None, :])
        if self.pad is not None:
            if isinstance(keys, slice):
                keys = torch.arange(keys.start, keys.stop, device=distance.device)
            # Padding sees itself: a row of attention with nothing to see would be NaN.
            seen = (seen & (keys >= self.pad[:, None])[:, None, None]) | (distance == 0)
        return seen


class KVCache:
    """Keys and values of one layer: every column so far, or, for a window, a ring of the last `capacity`.

    `k`, `v`: Float[B, kv_heads, room, head_width]. On a CPU room grows with the text. With many rows there the values
    of a channel lie side by side in memory (v is a transposed view): the sum over columns then streams, see
    `attend_newest`. It does so only as long as there is little room behind the values in use.
    """

    def __init__(self, shape: tuple[int, int, int, int], rolling: bool, device=None, dtype=None):
        batch, heads, self.capacity, width = shape
        self.rolling = rolling
        grows = not rolling and torch.device(device or "cpu").type == "cpu"
        self.k = torch.zeros((batch, heads, 0 if grows else self.capacity, width), device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.by_channel = False
        self._lay(batch)
        self._spare: tuple[Tensor, Tensor] | None = None  # for `reorder`

    def _lay(self, rows: int) -> None:
        """Choose the layout of values for so many rows."""
        if rows > FEW and not self.by_channel and self.k.device.type == "cpu" and self.k.dtype == torch.float32:
            self.by_channel = True
            self.v = self.v.mT.contiguous().mT

    @property
    def rows(self) -> int:
        return len(self.k)

    @property
    def device(self) -> torch.device:
        return self.k.device

    @property
    def bytes(self) -> int:
        """What it takes once it is full."""
        batch, heads, _, width = self.k.shape
        return 2 * batch * heads * self.capacity * width * self.k.element_size()

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor, "slice | Tensor"]:
        """Append columns start, start+1, …; return the keys and values to attend over, and their columns."""
        stop = start + k.shape[2]
        if not self.rolling:
            self.append(k, v, start)
            if start == 0:
                return k, v, slice(0, stop)
            keys, values = self.k.narrow(2, 0, stop), self.v.narrow(2, 0, stop)
            return keys, values.contiguous() if self.by_channel and k.shape[2] > 1 else values, slice(0, stop)
        if k.shape[2] == 1:
            self.k[:, :, start % self.capacity] = k[:, :, 0]
            self.v[:, :, start % self.capacity] = v[:, :, 0]
            if stop <= self.capacity:
                return self.k[:, :, :stop], self.v[:, :, :stop], slice(0, stop)
            slots = torch.arange(self.capacity, device=k.device)
            return self.k, self.v, start - (start - slots) % self.capacity
        # A chunk: its first query still sees capacity - 1 columns before it, so attend first, then overwrite.
        first = max(0, start - self.capacity + 1)
        before = torch.arange(first, start, device=k.device) % self.capacity
        keys, values = torch.cat((self.k[:, :, before], k), 2), torch.cat((self.v[:, :, before], v), 2)
        self.append(k, v, start)
        return keys, values, slice(first, stop)

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        """Write columns start, start+1, …, which nobody looks from."""
        stop = start + k.shape[2]
        if self.rolling:
            last = torch.arange(max(start, stop - self.capacity), stop, device=k.device)
            self.k[:, :, last % self.capacity] = k[:, :, last - start]
            self.v[:, :, last % self.capacity] = v[:, :, last - start]
            return
        if stop > self.k.shape[2]:
            self._grow(stop)
        self.k.narrow(2, start, k.shape[2]).copy_(k)  # as k[:, :, start:stop] = k, in a third of the time
        self.v.narrow(2, start, k.shape[2]).copy_(v)

    def _grow(self, columns: int) -> None:
        """Make room for this many columns and a quarter more."""
        batch, heads, held, width = self.k.shape
        room = min(self.capacity, columns + max(columns // 4, 32))
        k, v = self.k.new_empty((batch, heads, room, width)), self.v.new_empty((batch, heads, room, width))
        if self.by_channel:
            v = v.view(batch, heads, width, room).mT
        k[:, :, :held], v[:, :, :held] = self.k, self.v
        self.k, self.v, self._spare = k, v, None

    def reserve(self, columns: int) -> None:
        """Make it possible to take back so many of the newest columns: a ring, still empty, becomes larger by them."""
        if self.rolling:
            batch, heads, held, width = self.k.shape
            self.capacity = held + columns
            self.k, self.v = (x.new_zeros((batch, heads, self.capacity, width)) for x in (self.k, self.v))
            self.by_channel = False
            self._lay(batch)

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was (beams).

        Without gradients, two sets of buffers take turns: memory that is fresh every step costs more than the copying.
        """
        self._lay(len(rows))
        k, v = self.k, self.v.mT if self.by_channel else self.v
        if torch.is_grad_enabled():
            taken = k[rows], v[rows]
        else:
            if self._spare is None or len(self._spare[0]) < len(rows) or self._spare[1].shape[1:] != v.shape[1:]:
                self._spare = tuple(x.new_empty((len(rows), *x.shape[1:])) for x in (k, v))
            taken = tuple(torch.index_select(x, 0, rows, out=y[: len(rows)]) for x, y in zip((k, v), self._spare))
            self._spare = k, v
        self.k, self.v = taken[0], taken[1].mT if self.by_channel else taken[1]


@runtime_checkable
class Extends(Protocol):
    """A cache, as attention knows it."""

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor, "slice | Tensor"]: ...


def attend_newest(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B Hkv S Dh"],
    v: Float[Tensor, "B Hkv S Dh"],
    mask: Tensor | None,  # Bool or Float[#B H T S], or [#B 1 group·T S], which is the same for all groups
    scale: float | None = None,
) -> Float[Tensor, "B H T Dh"]:
    """Attention of one token a row or of a few, a step of decoding, which costs what reading keys and values costs.

    The heads of a group look at the same keys: they stand as rows of one query matrix, and nothing is repeated.
    """
    B, H, T, width = q.shape
    q = q.reshape(B, k.shape[1], -1, width)
    if mask is not None and mask.shape[1] == H:
        mask = mask.reshape(mask.shape[0], k.shape[1], -1, mask.shape[-1])
    if v.stride(-1) == 1:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    else:
        # Values by channel: in this order of products both read memory as it lies: 1.3 to 2 times as fast.
        scores = (k @ (q * (width**-0.5 if scale is None else scale)).mT).mT  # [B, Hkv, group, S]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        y = (v.mT @ scores.softmax(-1).mT).mT
    return y.reshape(B, H, T, width)


class AttentionConfig(Config):
    """Scaled dot-product attention (arXiv 1706.03762), grouped heads (2305.13245), windows (2310.06825)."""

    kind: Literal["attention"] = "attention"
    heads: int
    kv_heads: int | None = None  # None: one per head; 1: multi-query
    head_width: int | None = None  # None: width / heads
    window: int | None = None  # how many columns a token sees, itself included; None: all
    causal: bool = True
    position: Annotated[RotaryConfig | AlibiConfig | RelativeBiasConfig, Slot()] | None = None  # others are in `embed`
    bias: bool = False  # on queries, keys and values
    out_bias: bool = False
    qk_norm: RMSNormConfig | None = None  # over each head, before rotation (Qwen 3)
    dropout: float = 0.0  # of attention weights
    scale: float | None = None  # of the products of queries and keys; None: 1 / √head_width

    @model_validator(mode="after")
    def _fits(self) -> "AttentionConfig":
        if isinstance(self.position, RelativeBiasConfig) and self.window is not None:
            raise ValueError("relative biases and windows do not go together")
        return self

    def build(self, width: int) -> "Attention":
        return Attention(self, width)

    @property
    def endless(self) -> bool:
        """Whether texts may go on beyond the length trained on: nobody looks further back than in training."""
        return self.window is not None or isinstance(self.position, AlibiConfig)

    def widths(self, width: int) -> tuple[int, int, int]:
        """(query heads, key-value heads, head width) in a model of this width."""
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({kv_heads})")
        if self.head_width is None and width % self.heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({self.heads}), or give head_width")
        return self.heads, kv_heads, self.head_width or width // self.heads


class Attention(nn.Module):
    """Queries, keys and values lie in one matrix, in this order: one multiplication instead of three."""

    def __init__(self, config: AttentionConfig, width: int):
        super().__init__()
        self.config = config
        self.heads, self.kv_heads, self.head_width = config.widths(width)
        rows = tuple(n * self.head_width for n in (self.heads, self.kv_heads, self.kv_heads))
        self.qkv = Linear(width, sum(rows), bias=config.bias)
        self.out = Linear(rows[0], width, bias=config.out_bias)
        self.packed = {"qkv.weight": rows}
        self.rotation = f"rotation {config.position!r} {self.head_width}"  # layers of one name share their angles
        self.q_norm = config.qk_norm.build(self.head_width) if config.qk_norm else None
        self.k_norm = config.qk_norm.build(self.head_width) if config.qk_norm else None
        self.biased = isinstance(config.position, AlibiConfig | RelativeBiasConfig)

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: "Extends | None" = None
    ) -> Float[Tensor, "B T D"]:
        B, T, _ = x.shape
        q, k, v = self.project(x, layout)
        columns = slice(0, T)
        if state is not None:
            k, v, columns = state.extend(k, v, layout.start)
        y = self._attend(q, k, v, layout, columns)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def remember(self, x: Float[Tensor, "B T D"], layout: Layout, state: KVCache) -> None:
        """Cache the keys and values of tokens that are to be looked at, and do not look themselves."""
        _, k, v = self.project(x, layout)
        state.append(k, v, layout.start)

    def weights(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B H T T"]:
        """How much each token (third axis) takes from each (fourth), head by head; for looking at, without dropout."""
        q, k, _ = self.project(x, layout)
        columns = slice(0, x.shape[1])
        mask = layout.mask(columns, self.config.window, self.config.causal)
        scale = self.head_width**-0.5 if self.config.scale is None else self.config.scale
        scores = q @ k.repeat_interleave(self.heads // self.kv_heads, dim=1).mT * scale
        if self.biased:
            scores = scores + self._bias(layout, columns, q.dtype)
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, Dh], keys and values [B, kv_heads, T, Dh]."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, self.heads + 2 * self.kv_heads, self.head_width)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None:
            q, k = qk.split((self.heads, self.kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        if isinstance(self.config.position, RotaryConfig):
            qk = rotate(qk, *layout.rotation(self.config.position, self.rotation, self.head_width, qk.dtype))
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, columns: "slice | Tensor") -> Tensor:
        window, causal = self.config.window, self.config.causal
        T, S = q.shape[2], k.shape[2]
        aligned = isinstance(columns, slice) and columns.start == layout.start  # queries and keys: the same columns
        packed = layout.segments is not None or layout.prefix is not None or layout.seen is not None
        plain = layout.pad is None and not packed and (window is None or window >= S)
        # The newest token alone sees all that is in its cache; a ring holds no more than the window.
        everything = plain and (not causal or (T == 1 and not (aligned and S > 1)))
        dropout = self.config.dropout if self.training else 0.0
        scale, grouped = self.config.scale, self.kv_heads != self.heads
        if plain and causal and aligned and T > 1 and not self.biased:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
            )
        few = T > 1 and not aligned and T <= NEWEST and not dropout and q.device.type == "cpu"
        if self.biased:
            mask = self._bias(layout, columns, q.dtype)
        elif few:
            mask = layout.group_mask(columns, window, causal, self.heads // self.kv_heads, q.dtype)
        else:
            mask = None if everything else layout.mask(columns, window, causal)
        if few or (T == 1 and not dropout):
            return attend_newest(q, k, v, mask, scale)
        if grouped and mask is not None and q.device.type != "cpu":  # no fused kernel there takes both
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
            grouped = False
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=grouped
        )

    def _bias(self, layout: Layout, columns: "slice | Tensor", dtype: torch.dtype) -> Tensor:
        """What is added to scores, -inf where attention may not look: the stack's, or ALiBi's. Float[B|1, H, T, S]."""
        if isinstance(self.config.position, RelativeBiasConfig):
            return layout.bias.to(dtype)
        mask = layout.mask(columns, self.config.window, self.config.causal)
        bias = -AlibiConfig.slopes(self.heads, mask.device)[:, None, None] * layout.distance(columns).abs()
        return bias.masked_fill(~mask, float("-inf")).to(dtype)

    def init_state(self, batch: int, capacity: int, device=None, dtype=None) -> KVCache:
        """An empty cache for `capacity` columns; a ring of `window` columns where that is less."""
        window = self.config.window
        rolling = window is not None and window < capacity
        shape = (batch, self.kv_heads, window if rolling else capacity, self.head_width)
        return KVCache(shape, rolling, device, dtype)
