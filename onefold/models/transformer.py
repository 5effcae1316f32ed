"""One decoder for GPT-2, GPT-NeoX, Llama, Mistral, Qwen: what tells them apart is data.

    tokens → embed → blocks → norm → head → logits

A block is norm, mixer, norm, feed-forward, each a slot; see families.py for the published settings. With a cross slot,
between mixer and feed-forward, it is the second half of models/seq2seq.py.
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.models.adopting import below, with_routes
from onefold.models.embed import Embed, EmbedConfig, Norm
from onefold.models.state import DecoderState
from onefold.models.text_head import PREFIX, TextHeadConfig, adopt_head
from onefold.nn.adaptive.mixture_of_depths import MixtureOfDepthsConfig, PassedCache
from onefold.nn.adaptive.repeat import RepeatConfig
from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.cross import CrossAttention, KeysValues
from onefold.nn.drop_path import DropPath
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.linear import Linear
from onefold.nn.norm import RMSNormConfig
from onefold.nn.position import (
    LearnedPositionConfig,
    RelativeBias,
    RelativeBiasConfig,
    RotaryConfig,
)
from onefold.nn.sparse.experts import ExpertsConfig, upcycled
from onefold.nn.states.ssm import S4Config, S4DConfig


class BlockConfig(Config):
    """norm → mixer → norm → feed-forward, each added to the residual stream; with `cross`, norm → cross in between.

    `residual`: "pre" normalises what enters a branch, "post" what leaves the sum (the first Transformer), "parallel"
    gives both branches the same input (GPT-NeoX).
    """

    norm: Norm = RMSNormConfig()
    mixer: Annotated[AttentionConfig | S4DConfig | S4Config, Slot()]
    cross: AttentionConfig | None = None  # looks at another text, all of it
    ffn: Annotated[MLPConfig | GatedMLPConfig | ExpertsConfig, Slot()] | None  # None: the mixer is all of the block
    residual: Literal["pre", "post", "parallel"] = "pre"
    route: MixtureOfDepthsConfig | None = None  # which tokens go through it; None: all
    dropout: float = 0.0  # of what each branch adds
    drop_path: float | None = None  # how often a branch is left out for a row in training (arXiv 1603.09382)
    layer_scale: float | None = None  # what each channel of a branch is multiplied with at first (arXiv 2103.17239)

    @model_validator(mode="after")
    def _crosses(self) -> "BlockConfig":
        if self.cross is not None:
            if self.cross.causal or self.cross.window is not None or self.cross.position is not None:
                raise ValueError("cross-attention sees all of its source: causal=false, no window, no position")
            if self.residual == "parallel":
                raise ValueError("cross-attention follows the mixer: residual must be pre or post")
        return self

    @model_validator(mode="after")
    def _routes(self) -> "BlockConfig":
        if self.route is not None:
            mixer = self.mixer
            if not isinstance(mixer, AttentionConfig) or mixer.window is not None:
                raise ValueError("only attention without a window can do without the tokens that pass it by (route)")
            if mixer.position is not None and not isinstance(mixer.position, RotaryConfig):
                raise ValueError("with route, positions must be rotary or in `embed`: others count columns")
        return self

    def build(self, width: int) -> "Block":
        return Block(self, width)


def check_repeat(repeat: RepeatConfig | None, blocks: Collection[BlockConfig]) -> None:
    """Raises ValueError where tokens could not halt and be seen by others still."""
    unseen = any(not isinstance(block.mixer, AttentionConfig) or block.route for block in blocks)
    if repeat is not None and repeat.halting is not None and unseen:
        raise ValueError("who has halted stays to be seen: repeat.halting needs attention, and no block.route")


def is_trusted(info: Any) -> bool:  # pydantic.ValidationInfo
    """Whether what is being read may name code: it does not come from a file."""
    return info.context is None or info.context.get("trusted", False)  # no context: a call from Python


def patterned(
    block: BlockConfig, pattern: tuple[dict[str, Any], ...], depth: int, trusted: bool = True
) -> list[BlockConfig]:
    """The config of every layer: that of layer i is `block.but(pattern[i % len(pattern)])`. trusted: as in `but`."""
    if not pattern:
        return [block] * depth
    variants = [block.but(changes, trusted) if changes else block for changes in pattern]
    if len({repr(relative_bias(variant)) for variant in variants}) > 1:
        raise ValueError("relative biases are shared by all layers: a pattern cannot change them")
    return [variants[i % len(variants)] for i in range(depth)]


class DecoderConfig(Config):
    """A causal language model; with `prefix` one whose prompt is seen whole by each of its tokens.

    `pattern` varies the blocks: layer i is `block.but(pattern[i % len(pattern)])`, so that alternating windows are
    `({}, {"mixer.window": 256})` and a pyramid has as many entries as layers.
    """

    kind: Literal["decoder"] = "decoder"
    vocab: int
    width: int
    depth: int
    context: int  # what it is trained on; learned positions end here
    prefix: bool = False  # what it goes on from is read in both directions (arXiv 1910.10683, section 3.2.1)
    embed: EmbedConfig = EmbedConfig()
    block: BlockConfig
    pattern: tuple[dict[str, Any], ...] = ()
    repeat: RepeatConfig | None = None  # all blocks again and again; None: once
    norm: Norm | None = RMSNormConfig()  # before the head
    tied: bool = True  # the head is the embedding, transposed
    head_bias: bool = False
    classes: int = Field(default=0, ge=0)  # of the classifier; 0: none
    classifier: TextHeadConfig = TextHeadConfig()
    init: Literal["normal", "fan_in"] = "normal"

    @model_validator(mode="after")
    def _fits(self, info: Any) -> "DecoderConfig":  # pydantic.ValidationInfo
        trusted = is_trusted(info)
        blocks = set(self.blocks(trusted)) if self.pattern else {self.block}
        for block in blocks:
            if isinstance(block.mixer, AttentionConfig):
                block.mixer.widths(self.width)
        if self.prefix and not all(isinstance(block.mixer, AttentionConfig) for block in blocks):
            raise ValueError("a prefix that is seen whole needs attention: other mixers read in one direction")
        if self.prefix and any(block.route for block in blocks):
            raise ValueError("a prefix is seen whole by all blocks: route must be null")
        check_repeat(self.repeat, blocks)
        learned = self.embed.position
        if isinstance(learned, LearnedPositionConfig) and learned.context < self.context:
            raise ValueError(f"context ({self.context}) exceeds the learned positions ({learned.context})")
        if self.tied and self.embed.width not in (None, self.width):
            raise ValueError(f"a tied head needs embed.width to be the model's width ({self.width})")
        return self

    def blocks(self, trusted: bool = True) -> list[BlockConfig]:
        """The config of every layer, in order. `trusted`: as in Config.but; a pattern is checked when it is read."""
        return patterned(self.block, self.pattern, self.depth, trusted)

    def build(self) -> "Decoder":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return Decoder(self)


class Block(nn.Module):
    def __init__(self, config: BlockConfig, width: int):
        super().__init__()
        self.residual = config.residual
        self.route = config.route.build(width) if config.route else None
        self.mixer_norm = config.norm.build(width)
        self.mixer = config.mixer.build(width)
        self.cross_norm = config.norm.build(width) if config.cross else None
        self.cross = CrossAttention(config.cross, width) if config.cross else None
        self.ffn_norm = config.norm.build(width) if config.ffn else None
        self.ffn = config.ffn.build(width) if config.ffn else None
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path) if config.drop_path else None
        scale = config.layer_scale
        self.mixer_scale = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.cross_scale = None if scale is None or not config.cross else nn.Parameter(torch.full((width,), scale))
        self.ffn_scale = None if scale is None or not config.ffn else nn.Parameter(torch.full((width,), scale))

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: Any = None, memory: KeysValues | None = None
    ) -> Float[Tensor, "B T D"]:
        """`memory`: what cross-attention looks at where it is known already; else the layout's."""
        if self.route is None:
            return self._through(x, layout, state, memory)

        def through(rows: Tensor, inner: Layout, slots: Any) -> Tensor:
            return self._through(rows, inner, slots, memory)

        return self.route(through, self.mixer.config.causal, x, layout, state)

    def init_state(self, batch: int, capacity: int, device: Any, dtype: torch.dtype) -> Any:
        """What it remembers of texts, of which it has read nothing yet."""
        if self.route is None:
            return self.mixer.init_state(batch, capacity, device, dtype)
        return PassedCache((batch, self.mixer.kv_heads, self.mixer.head_width), device, dtype)

    def _through(self, x: Tensor, layout: Layout, state: Any, memory: KeysValues | None) -> Tensor:
        if self.residual == "parallel":
            mixed = x + self._branch(self.mixer(self.mixer_norm(x), layout, state), self.mixer_scale)
            return mixed if self.ffn is None else mixed + self._branch(self.ffn(self.ffn_norm(x)), self.ffn_scale)
        if self.residual == "post":
            x = self.mixer_norm(x + self._branch(self.mixer(x, layout, state), self.mixer_scale))
            if self.cross is not None:
                x = self.cross_norm(x + self._branch(self.cross(x, layout, memory), self.cross_scale))
            return x if self.ffn is None else self.ffn_norm(x + self._branch(self.ffn(x), self.ffn_scale))
        x = x + self._branch(self.mixer(self.mixer_norm(x), layout, state), self.mixer_scale)
        if self.cross is not None:
            x = x + self._branch(self.cross(self.cross_norm(x), layout, memory), self.cross_scale)
        return x if self.ffn is None else x + self._branch(self.ffn(self.ffn_norm(x)), self.ffn_scale)

    def remember(self, x: Float[Tensor, "B T D"], layout: Layout, state: Any) -> None:
        """Put into the state what `forward` would of these tokens, and compute nothing else: for layers that tokens
        skipped, which those to come look back at."""
        x = x if self.residual == "post" else self.mixer_norm(x)
        getattr(self.mixer, "remember", self.mixer)(x, layout, state)  # a recurrence has to read it all the same

    def _branch(self, y: Tensor, scale: Tensor | None) -> Tensor:
        """What a branch adds."""
        y = self.dropout(y if scale is None else y * scale)
        return y if self.drop_path is None else self.drop_path(y)


def relative_bias(block: BlockConfig) -> RelativeBiasConfig | None:
    """What the layers of a stack share of their positions."""
    position = getattr(block.mixer, "position", None)
    return position if isinstance(position, RelativeBiasConfig) else None


def build_relative(block: BlockConfig, ahead: bool = False) -> RelativeBias | None:
    """The trained biases that a stack of these blocks owns, if any. ahead: some tokens are seen before they come."""
    relative = relative_bias(block)
    return relative and relative.build(block.mixer.heads, block.mixer.causal and not ahead)


def with_new_tokens(weights: Mapping[str, Tensor], vocab: int, names: Collection[str]) -> dict[str, Tensor]:
    """`weights` for a vocabulary that may be larger: in those of `names`, new tokens are the mean of the others."""
    adopted = dict(weights)
    for name in names:
        new = vocab - len(adopted.get(name, ()))
        if name in adopted and new > 0:
            mean = adopted[name].mean(0, keepdim=True)
            adopted[name] = torch.cat((adopted[name], mean.expand(new, *mean.shape[1:])))
    return adopted


class Decoder(nn.Module):
    """`features` reads tokens, `head` turns features into logits; calling the model does both.

    Without a state, row after row is read whole; `positions` and `segments` tell documents packed into one row apart.
    With a state, tokens follow those already read, and positions of -1 mark the padding that leads shorter rows.
    Where there are classes, `classify` turns features into their logits.
    """

    entry_points = ("features", "layers", "head", "classify")  # what a parallel plan has to wrap

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed = Embed(config.embed, config.vocab, config.width)
        self.blocks = nn.ModuleList(block.build(config.width) for block in config.blocks())
        self.repeat = config.repeat.build(config.width) if config.repeat else None
        self.relative = build_relative(config.block, ahead=config.prefix)
        self.norm = config.norm.build(config.width) if config.norm else None
        self.unembed = Linear(config.width, config.vocab, bias=config.head_bias)
        if config.tied:
            self.unembed.weight = self.embed.token.weight
        self.classifier = config.classifier.build(config.width, config.classes) if config.classes else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights.

        "normal" is GPT-2's: N(0, 0.02), and 1/√(2·depth) of that for what writes to the residual stream, whose
        variance then does not grow with depth. "fan_in" scales every matrix to its own input, starts what writes to
        the stream at zero, so that the model begins as a bigram table of small logits, and depends on no width.
        """
        fan_in = self.config.init == "fan_in"
        for name, parameter in self.named_parameters():
            if name.startswith((PREFIX, "repeat.")) or ".kernel." in name or ".route." in name:
                pass  # as it made itself
            elif name.endswith("bias") or name.startswith("relative."):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            elif name.endswith("_scale"):
                pass  # as its block made it
            elif name.startswith("embed."):
                parameter.normal_(std=1 / math.sqrt(self.config.width) if fan_in else 0.02)
            elif name.startswith("unembed."):
                parameter.normal_(std=0.5 / math.sqrt(self.config.width) if fan_in else 0.02)
            elif name.endswith("out.weight"):
                parameter.zero_() if fan_in else parameter.normal_(std=0.02 / math.sqrt(2 * self.config.depth))
            else:
                parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]) if fan_in else 0.02)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another decoder as this one takes them: tokens it adds begin as the mean of the others,
        experts as the dense layer that was in their place, and what decides about tokens' depth afresh.

        Its classifier stays fresh where the other has none, or one of other classes.
        """
        weights = with_routes(adopt_head(self.state_dict(), upcycled(below(weights, "trunk"), self)), self)
        return with_new_tokens(weights, self.config.vocab, ("embed.token.weight", "unembed.weight", "unembed.bias"))

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        prefix: Bool[Tensor, "B T"] | None = None,
        state: DecoderState | None = None,
        memory: Float[Tensor, "B S D"] | None = None,
        memory_seen: Bool[Tensor, "B 1 1 S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token: the input of `head`.

        prefix: tokens that all tokens of their segment see, also those before them. With a state, a model that was
        trained with prefixes takes what it reads first as one. memory: what blocks with a cross slot look at.
        """
        if state is not None:
            layout = state.layout(tokens, positions)
        else:
            layout = _uncached(tokens, positions, segments=segments, prefix=prefix)
            layout.memory, layout.memory_seen = memory, memory_seen
        x = self.enter(tokens, layout)
        if self.repeat is not None:
            x = self.repeat(x, layout, self.blocks, state)
        else:
            for i, block in enumerate(self.blocks):
                x = block(x, layout) if state is None else block(x, layout, state.layers[i], state.memory[i])
        if state is not None:
            state.length += tokens.shape[1]
        return x if self.norm is None else self.norm(x)

    def layers(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        prefix: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "L B T D"]:
        """What `features` would be if the model ended with its first layer, its second, …, the last: for objectives by
        which each of them learns to answer."""
        layout = _uncached(tokens, positions, segments=segments, prefix=prefix)
        if self.repeat is not None:
            raise UserError("the layers of this model are repeated: none of them answers by itself (model.repeat)")
        x, found = self.enter(tokens, layout), []
        for block in self.blocks:
            x = block(x, layout)
            found.append(x if self.norm is None else self.norm(x))
        return torch.stack(found)

    def enter(self, tokens: Int[Tensor, "B T"], layout: Layout) -> Float[Tensor, "B T D"]:
        """What the first block reads; biases that all layers share are in the layout then."""
        if self.relative is not None:
            layout.relate(self.relative, self.config.block.mixer.causal)
        return self.embed(tokens, layout)

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the next token."""
        return self.unembed(features)

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `head` multiplies, with which matrix [V, D], and the bias it adds: for losses that need no logits."""
        return features, self.unembed.weight, self.unembed.bias

    def classify(
        self, features: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes of each row, whose tokens of another segment than 0 are padding."""
        return self.classifier(features, segments)

    def forward(self, tokens: Int[Tensor, "B T"], *args: Any, **kwargs: Any) -> Float[Tensor, "B T V"]:
        return self.head(self.features(tokens, *args, **kwargs))

    def init_state(self, batch: int, capacity: int, device=None, dtype=None) -> DecoderState:
        """Empty caches for `batch` rows of up to `capacity` columns; windows shorter than that roll."""
        weight = self.embed.token.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        steps = self.config.repeat.steps if self.config.repeat else 1
        layers = [block.init_state(batch, capacity, device, dtype) for _ in range(steps) for block in self.blocks]
        return DecoderState(layers, capacity, self.config.prefix)


def _uncached(tokens: Tensor, positions: Tensor | None, **where: Any) -> Layout:
    """Of rows that are read whole; `where`: further fields."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)[None]
    return Layout(columns if positions is None else positions, **where)


def count_parameters(config: Any) -> int:
    """How many parameters a model of this config has (shared ones once), without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())
