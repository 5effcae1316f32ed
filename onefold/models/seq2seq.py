"""One text in, another out: Transformer, T5, BART and Marian as an encoder and a decoder whose blocks look at it.

    source → encoder → memory
    tokens → decoder, its cross-attention on the memory → head → logits of the next token

Both halves are those of encoder.py and transformer.py and share their token vectors; see seq2seq_families.py for the
published settings. Without an encoder the decoder reads the source itself, as a whole, and goes on from it: that is a
prefix language model (arXiv 1910.10683, section 3.2.1).
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.adopting import with_routes
from onefold.models.embed import EmbedConfig, Norm
from onefold.models.encoder import EncoderConfig
from onefold.models.state import DecoderState
from onefold.models.transformer import BlockConfig, DecoderConfig, is_trusted, patterned, with_new_tokens
from onefold.models.vision.depths import depth_of
from onefold.nn.adaptive.repeat import RepeatConfig
from onefold.nn.attention import Attention
from onefold.nn.cross import CrossAttention
from onefold.nn.padding import text_places
from onefold.nn.sparse.experts import upcycled


class StackConfig(Config):
    """One half: so many blocks, and a norm after the last where blocks normalise what enters them."""

    depth: int
    block: BlockConfig
    pattern: tuple[dict[str, Any], ...] = ()  # how layers differ, as in DecoderConfig
    repeat: RepeatConfig | None = None  # all blocks again and again (Universal Transformer)
    norm: Norm | None = None

    @model_validator(mode="after")
    def _varies(self, info: Any) -> "StackConfig":  # pydantic.ValidationInfo
        patterned(self.block, self.pattern, self.depth, is_trusted(info))
        return self


class Seq2SeqConfig(Config):
    """An encoder-decoder (arXiv 1706.03762), or a decoder that reads both texts, one behind the other."""

    kind: Literal["seq2seq"] = "seq2seq"
    vocab: int  # of both sides
    width: int
    context: int  # what it is trained on, a side; learned positions end here or later
    embed: EmbedConfig = EmbedConfig()  # of both sides; token vectors are shared, learned positions are not
    encoder: StackConfig | None  # None: the decoder reads the source, too, in both directions
    decoder: StackConfig
    tied: bool = True  # the head is the embedding, transposed
    head_scaled: bool = False  # features are divided by √width before the head (T5)
    head_bias: bool = False
    start: int | None = None  # the token that the decoder reads first; None: the tokenizer's `decoder_start`
    first: int | None = None  # the token that every text begins with when it is written (BART's <s>); None: any
    init: Literal["normal", "fan_in"] = "normal"

    @model_validator(mode="after")
    def _fits(self) -> "Seq2SeqConfig":
        cross = self.decoder.block.cross
        if self.encoder is None:
            if cross is not None:
                raise ValueError("without an encoder there is nothing to look at: decoder.block.cross must be null")
        elif cross is None:
            raise ValueError("decoder.block.cross is missing: it is how a decoder sees the source")
        else:
            cross.widths(self.width)
        if not self.decoder.block.mixer.causal:
            raise ValueError("a decoder sees what came before: decoder.block.mixer.causal must be true")
        for name in ("start", "first"):
            if not 0 <= (getattr(self, name) or 0) < self.vocab:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a token: 0 to {self.vocab - 1}")
        self.halves()
        return self

    def halves(self) -> tuple[EncoderConfig | None, DecoderConfig]:
        """What the two sides are on their own."""
        shared = {"vocab": self.vocab, "width": self.width, "embed": self.embed, "init": self.init}
        head = {"tied": self.tied, "head_bias": self.head_bias}
        if self.encoder is None:
            both = {"context": 2 * self.context, "prefix": True}
            return None, DecoderConfig(**shared, **both, **_fields(self.decoder), **head)
        encoder = EncoderConfig(**shared, context=self.context, **_fields(self.encoder), masked=None)
        return encoder, DecoderConfig(**shared, context=self.context, **_fields(self.decoder), **head)

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
        encoder, decoder = config.halves()
        self.encoder = encoder and encoder.build()
        self.decoder = decoder.build()
        if self.encoder is not None:
            self.decoder.embed.token = self.encoder.embed.token
        if config.tied:
            self.decoder.unembed.weight = self.decoder.embed.token.weight
        self.first = config.encoder.depth if config.encoder else 0  # depth of the decoder's first block
        self.depths = self.first + config.decoder.depth + 1
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
            self.decoder.embed.token.weight *= self.config.width**0.5

    def features(
        self,
        source: Int[Tensor, "B S"],
        tokens: Int[Tensor, "B T"],
        source_segments: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token, given its row's source: the input of `head`.

        source_segments: 0 text, 1 padding.
        """
        if self.encoder is None:
            return self.decoder.features(*_joined(source, tokens, source_segments))[:, source.shape[1] :]
        memory = self.encoder.features(source, None, source_segments)
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
        if self.encoder is None:
            state = self.decoder.init_state(len(source), source.shape[1] + capacity)
            source, padding = _right_aligned(source, source_segments)
            self.decoder.features(source, None if padding is None else _positions(padding), state=state)
            return state
        memory = self.encoder.features(source, None, source_segments)
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
        """The weights of another such model as this one takes them: tokens it adds begin as the mean of the others, and
        experts as the dense layer that was in their place."""
        embedding = "decoder.embed.token.weight" if self.encoder is None else "encoder.embed.token.weight"
        names = (embedding, "decoder.unembed.weight", "decoder.unembed.bias")
        return with_new_tokens(with_routes(upcycled(weights, self), self), self.config.vocab, names)

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embeddings) to `depths` (last norm and head)."""
        half, _, rest = name.partition(".")
        if half == "encoder":
            return min(depth_of(rest, (self.first,)), self.first)
        depth = depth_of(rest, (self.config.decoder.depth,))
        return depth and self.first + depth

    def _scaled(self, features: Tensor) -> Tensor:
        return features * self.config.width**-0.5 if self.config.head_scaled else features


def _joined(
    source: Int[Tensor, "B S"], tokens: Int[Tensor, "B T"], source_segments: Int[Tensor, "B S"] | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """(tokens, positions, segments, prefix) [B, S + T] of sources and what is written about them, in one row."""
    source, padding = _right_aligned(source, source_segments)
    both = torch.cat((source, tokens), 1)
    prefix = torch.arange(both.shape[1], device=both.device) < source.shape[1]
    prefix = prefix.expand(both.shape)
    if padding is None:
        return both, None, None, prefix
    padding = torch.cat((padding, torch.zeros_like(tokens, dtype=torch.bool)), 1)
    return both, _positions(padding).clamp(min=0), padding.long(), prefix


def _right_aligned(
    source: Int[Tensor, "B S"], segments: Int[Tensor, "B S"] | None
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"] | None]:
    """Sources whose padding leads, so that what follows stands right behind them, and where that padding is."""
    if segments is None:
        return source, None
    columns = torch.arange(source.shape[1], device=source.device)
    missing = (segments != 0).sum(1, keepdim=True)
    return source.gather(1, (columns - missing) % source.shape[1]), columns < missing


def _positions(padding: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Of tokens behind the padding that leads their rows, which has -1."""
    return (~padding).long().cumsum(1) - 1


def _seen(segments: Tensor | None) -> Tensor | None:
    """Where a source has text, as a mask of cross-attention."""
    return None if segments is None else text_places(segments)[:, None, None]
