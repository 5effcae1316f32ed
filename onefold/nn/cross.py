"""Cross-attention: the tokens of one text look at all of another, whose keys and values are made once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.linear import Linear

FEW = 8  # queries of a text up to which a CPU's fused attention kernel is slower than two products

KeysValues = tuple[Float[Tensor, "sources Hkv S Dh"], Float[Tensor, "sources Hkv S Dh"]]


class CrossAttention(nn.Module):
    """The decoder's second attention (arXiv 1706.03762, section 3.2.3). Keys and values lie in one matrix."""

    def __init__(self, config: AttentionConfig, width: int):
        super().__init__()
        self.config = config
        self.heads, self.kv_heads, self.head_width = config.widths(width)
        rows = self.kv_heads * self.head_width
        self.q = Linear(width, self.heads * self.head_width, bias=config.bias)
        self.kv = Linear(width, 2 * rows, bias=config.bias)
        self.out = Linear(self.heads * self.head_width, width, bias=config.out_bias)
        self.packed = {"kv.weight": (rows, rows)}
        self.q_norm = config.qk_norm.build(self.head_width) if config.qk_norm else None
        self.k_norm = config.qk_norm.build(self.head_width) if config.qk_norm else None

    def remember(self, memory: Float[Tensor, "B S D"]) -> KeysValues:
        """Keys and values of what is looked at, for those who ask again and again: keys lie channel by channel."""
        k, v = self._project(memory)
        return k.mT.contiguous().mT, v.contiguous()

    def forward(
        self, x: Float[Tensor, "R T D"], layout: Layout, remembered: KeysValues | None = None
    ) -> Float[Tensor, "R T D"]:
        """Look at `remembered`, or at the layout's memory; neighbouring rows, as many as there are beams, share one."""
        k, v = self._project(layout.memory) if remembered is None else remembered
        rows, length, _ = x.shape
        q = self._queries(x.reshape(len(k), -1, x.shape[-1]))  # [B, H, beams · T, Dh]
        if remembered is not None and q.shape[2] <= FEW and q.device.type == "cpu" and not self.training:
            y = self._look_up(q, k, v, layout.memory_seen)
        else:
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=layout.memory_seen,
                dropout_p=self.config.dropout if self.training else 0.0,
                scale=self.config.scale,
                enable_gqa=self.kv_heads != self.heads,
            )
        return self.out(y.transpose(1, 2).reshape(rows, length, -1))

    def weights(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B H T S"]:
        """How much each token (third axis) takes from each of the memory (fourth); for looking at, without dropout."""
        k, _ = self._project(layout.memory)
        scores = self._queries(x) @ k.repeat_interleave(self.heads // self.kv_heads, dim=1).mT * self.scale
        if layout.memory_seen is not None:
            scores = scores.masked_fill(~layout.memory_seen, -torch.inf)
        return scores.softmax(-1)

    @property
    def scale(self) -> float:
        return self.head_width**-0.5 if self.config.scale is None else self.config.scale

    def _look_up(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Float[Tensor, "B H T Dh"]:
        """Attention of few queries: the heads of a group are queries of one matrix, too."""
        scores = (q * self.scale).reshape(len(k), self.kv_heads, -1, self.head_width) @ k.mT
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ v).view(q.shape)

    def _project(self, memory: Float[Tensor, "B S D"]) -> KeysValues:
        B, S, _ = memory.shape
        k, v = self.kv(memory).view(B, S, 2, self.kv_heads, self.head_width).unbind(2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return k.transpose(1, 2), v.transpose(1, 2)

    def _queries(self, x: Tensor) -> Float[Tensor, "B H T Dh"]:
        q = self.q(x).view(x.shape[0], x.shape[1], self.heads, self.head_width)
        return (q if self.q_norm is None else self.q_norm(q)).transpose(1, 2)
