"""One text in, another out: Transformer, T5, BART and Marian as an encoder and a decoder whose blocks look at it.

    source → encoder → memory
    tokens → decoder, its cross-attention on the memory → head → logits of the next token

Both halves are those of encoder.py and transformer.py and share their token vectors; see seq2seq_families.py for the
published settings.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.depths import depth_of
from onefold.models.encoder import EncoderConfig
from onefold.models.transformer import (
    BlockConfig,
    DecoderConfig,
    DecoderState,
    EmbedConfig,
    Norm,
    with_new_tokens,
)
from onefold.nn.attention import Attention
from onefold.nn.cross import CrossAttention
from onefold.nn.padding import text_places


class StackConfig(Config):
    """One half: so many blocks, and a norm after the last where blocks normalise what enters them."""

    depth: int
    block: BlockConfig
    norm: Norm | None = None


class Seq2SeqConfig(Config):
    """An encoder-decoder (arXiv 1706.03762)."""

    kind: Literal["seq2seq"] = "seq2seq"
    vocab: int  # of both sides
    width: int
    context: int  # what it is trained on, a side; learned positions end here or later
    embed: EmbedConfig = EmbedConfig()  # of both sides; token vectors are shared, learned positions are not
    encoder: StackConfig
    decoder: StackConfig
    tied: bool = True  # the head is the embedding, transposed
    head_scaled: bool = False  # features are divided by √width before the head (T5)
    head_bias: bool = False
    start: int | None = None  # the token that the decoder reads first; None: the tokenizer's `decoder_start`
    first: int | None = None  # the token that every text begins with when it is written (BART's <s>); None: any
    init: Literal["normal", "fan_in"] = "normal"

    @model_validator(mode="after")
    def _fits(self) -> "Seq2SeqConfig":
        if self.decoder.block.cross is None:
            raise ValueError("decoder.block.cross is missing: it is how a decoder sees the source")
        self.decoder.block.cross.widths(self.width)
        if not self.decoder.block.mixer.causal:
            raise ValueError("a decoder sees what came before: decoder.block.mixer.causal must be true")
        for name in ("start", "first"):
            if not 0 <= (getattr(self, name) or 0) < self.vocab:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a token: 0 to {self.vocab - 1}")
        self.halves()
        return self

    def halves(self) -> tuple[EncoderConfig, DecoderConfig]:
        """What the two sides are on their own."""
        shared = {"vocab": self.vocab, "width": self.width, "context": self.context, "embed": self.embed}
        encoder = EncoderConfig(**shared, **_fields(self.encoder), masked=None, init=self.init)
        head = {"tied": self.tied, "head_bias": self.head_bias}
        return encoder, DecoderConfig(**shared, **_fields(self.decoder), **head, init=self.init)

    def build(self) -> "Seq2Seq":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return Seq2Seq(self)


def _fields(stack: StackConfig) -> dict[str, Any]:
    return {name: getattr(stack, name) for name in StackConfig.model_fields}


class Seq2Seq(nn.Module):
    """`features` reads sources and what has been written about them, `head` turns features into logits.

    To write, `init_state` reads the sources once; `decode` then takes new tokens, with that state.
    """

    entry_points = ("features", "head")  # what a parallel plan has to wrap

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = (half.build() for half in config.halves())
        self.decoder.embed.token = self.encoder.embed.token
        if config.tied:
            self.decoder.unembed.weight = self.encoder.embed.token.weight
        self.depths = config.encoder.depth + config.decoder.depth + 1
        self._balance()

    @torch.no_grad()
    def _balance(self) -> None:
        """In "fan_in" queries of products that are not scaled begin smaller, vectors that a head scales down larger.

        With it T5's weights begin as its authors let them (arXiv 1910.10683): queries small, token vectors N(0, 1).
        """
        if self.config.init != "fan_in":
            return
        for module in self.modules():
            if isinstance(module, Attention | CrossAttention) and module.config.scale is not None:
                queries = module.q.weight if isinstance(module, CrossAttention) else module.qkv.weight
                queries[: module.heads * module.head_width] *= module.head_width**-0.5 / module.config.scale
        if self.config.head_scaled:
            self.encoder.embed.token.weight *= self.config.width**0.5

    def encode(
        self, source: Int[Tensor, "B S"], source_segments: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """What the decoder looks at. `source_segments`: 0 text, 1 padding."""
        return self.encoder.features(source, None, source_segments)

    def features(
        self,
        source: Int[Tensor, "B S"],
        tokens: Int[Tensor, "B T"],
        source_segments: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token, given its row's source: the input of `head`."""
        memory = self.encode(source, source_segments)
        return self.decoder.features(tokens, memory=memory, memory_seen=_seen(source_segments))

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the next token."""
        return self.decoder.head(self._scaled(features))

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `head` multiplies, with which matrix [V, D], and the bias it adds: for losses that need no logits."""
        return self.decoder.readout(self._scaled(features))

    def forward(
        self,
        source: Int[Tensor, "B S"],
        tokens: Int[Tensor, "B T"],
        source_segments: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        return self.head(self.features(source, tokens, source_segments))

    def init_state(
        self, source: Int[Tensor, "B S"], source_segments: Int[Tensor, "B S"] | None, capacity: int
    ) -> DecoderState:
        """Read the sources; the state of rows of which nothing is written yet, for up to `capacity` tokens each."""
        memory = self.encode(source, source_segments)
        state = self.decoder.init_state(len(source), capacity)
        state.memory = [block.cross.remember(memory) for block in self.decoder.blocks]
        state.memory_seen = _seen(source_segments)
        return state

    def decode(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None, *, state: DecoderState
    ) -> Float[Tensor, "B T D"]:
        """The features of tokens that follow those already in the state."""
        return self.decoder.features(tokens, positions, state=state)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another such model as this one takes them: tokens it adds begin as the mean of the others."""
        names = ("encoder.embed.token.weight", "decoder.unembed.weight", "decoder.unembed.bias")
        return with_new_tokens(weights, self.config.vocab, names)

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embeddings) to `depths` (last norm and head)."""
        half, _, rest = name.partition(".")
        first = self.config.encoder.depth
        if half == "encoder":
            return min(depth_of(rest, (first,)), first)
        depth = depth_of(rest, (self.config.decoder.depth,))
        return depth and first + depth

    def _scaled(self, features: Tensor) -> Tensor:
        return features * self.config.width**-0.5 if self.config.head_scaled else features


def _seen(segments: Tensor | None) -> Tensor | None:
    """Where a source has text, as a mask of cross-attention."""
    return None if segments is None else text_places(segments)[:, None, None]
