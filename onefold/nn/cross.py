"""Cross-attention: the tokens of one text look at all of another, whose keys and values are made once."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.linear import Linear

KeysValues = tuple[Float[Tensor, "B Hkv S Dh"], Float[Tensor, "B Hkv S Dh"]]


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
        """Keys and values of what is looked at; those who ask again and again keep them."""
        B, S, _ = memory.shape
        k, v = self.kv(memory).view(B, S, 2, self.kv_heads, self.head_width).unbind(2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, remembered: KeysValues | None = None
    ) -> Float[Tensor, "B T D"]:
        """Look at `remembered`, or at the layout's memory."""
        k, v = self.remember(layout.memory) if remembered is None else remembered
        q = self._queries(x)
        dropout = self.config.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=layout.memory_seen,
            dropout_p=dropout,
            scale=self.config.scale,
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def weights(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B H T S"]:
        """How much each token (third axis) takes from each of the memory (fourth); for looking at, without dropout."""
        k, _ = self.remember(layout.memory)
        scale = self.head_width**-0.5 if self.config.scale is None else self.config.scale
        scores = self._queries(x) @ k.repeat_interleave(self.heads // self.kv_heads, dim=1).mT * scale
        if layout.memory_seen is not None:
            scores = scores.masked_fill(~layout.memory_seen, float("-inf"))
        return scores.softmax(-1)

    def _queries(self, x: Tensor) -> Float[Tensor, "B H T Dh"]:
        q = self.q(x).view(x.shape[0], x.shape[1], self.heads, self.head_width)
        return (q if self.q_norm is None else self.q_norm(q)).transpose(1, 2)
