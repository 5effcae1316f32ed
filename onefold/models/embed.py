"""Tokens as vectors, and what is added to them before the first block."""

import math
from typing import Annotated

from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.nn.attention import Layout
from onefold.nn.linear import Linear
from onefold.nn.norm import LayerNormConfig, RMSNormConfig
from onefold.nn.position import LearnedPositionConfig, SinusoidalPositionConfig

Norm = Annotated[LayerNormConfig | RMSNormConfig, Slot()]


class TokenDropoutConfig(Config):
    """Masked tokens are zeros, and the others of their text larger, so that the mean stays that of training.

    Vectors are scaled by (1 - rate) / (1 - share of the text that is masked), as ESM-1b does (Rives et al. 2021).
    """

    mask: int  # id of the mask token
    rate: float = 0.12  # what is masked in training: 0.15, of which 0.8 become the mask token


class EmbedConfig(Config):
    """Token vectors, and what is added to them before the first block: (token + position + type), norm, projection."""

    position: Annotated[LearnedPositionConfig | SinusoidalPositionConfig, Slot()] | None = None
    types: int = 0  # kinds of tokens told apart (first and second sentence); 0: none
    norm: Norm | None = None
    width: int | None = None  # of the vectors before they are projected to the model's (ALBERT, arXiv 1909.11942)
    scaled: bool = False  # token vectors times √width, before anything is added (arXiv 1706.03762, section 3.4)
    token_dropout: TokenDropoutConfig | None = None
    dropout: float = 0.0


class Embed(nn.Module):
    def __init__(self, config: EmbedConfig, vocab: int, width: int):
        super().__init__()
        inner = config.width or width
        self.token_dropout = config.token_dropout
        self.token = nn.Embedding(vocab, inner)
        self.scale = math.sqrt(inner) if config.scaled else 1.0
        self.position = config.position.build(inner) if config.position else None
        self.token_type = nn.Embedding(config.types, inner) if config.types else None
        self.norm = config.norm.build(inner) if config.norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.project = Linear(inner, width) if config.width else None

    def forward(
        self, tokens: Int[Tensor, "B T"], layout: Layout, types: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """`types` None: every token is of the first type."""
        x = self.token(tokens)
        if self.scale != 1.0:
            x = x * self.scale
        if self.token_dropout is not None:
            x = _without_masked(x, tokens == self.token_dropout.mask, self.token_dropout.rate, layout)
        if self.position is not None:
            x = x + self.position(layout.positions)
        if self.token_type is not None:
            x = x + (self.token_type.weight[0] if types is None else self.token_type(types))
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(x)
        return x if self.project is None else self.project(x)


def _without_masked(x: Tensor, masked: Tensor, rate: float, layout: Layout) -> Tensor:
    """See TokenDropoutConfig; the share that is masked is that of each text of a row."""
    if layout.segments is None:
        share = masked.float().mean(1, keepdim=True)
    else:
        own = layout.mask(slice(0, layout.length), None, False)[:, 0].float()  # [B, T, T], which attention needs anyway
        share = (own @ masked[..., None].float())[..., 0] / own.sum(-1)
    scale = (1 - rate) / (1 - share).clamp(min=1 / layout.length)  # of a text that is all masked, nothing is left
    return x.masked_fill(masked[..., None], 0) * scale[..., None].to(x.dtype)
