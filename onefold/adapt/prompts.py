"""Prompt and prefix tuning: vectors that stand before every text are learned, and no weight changes.

    prompt   n vectors are read as if they were those of tokens                (Lester et al. 2021, arXiv 2104.08691)
    prefix   n keys and values in every layer, read from nothing              (Li & Liang 2021, arXiv 2101.00190)

What comes first in a causal model sees nothing of what follows. So a prompt, too, is no more than keys and values in
every layer: those that the model makes of it by itself, once. Both are one mechanism then, an opening that every token
of every text sees, whether texts are packed into a row, padded or read from a cache; positions begin behind it.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.adapt.lora import NAME
from onefold.adapt.surgery import Switch, freeze, switch_of
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.models.transformer import Decoder
from onefold.nn.attention import Attention, KVCache, Layout, attend_newest
from onefold.nn.position import LearnedPositionConfig

Opening = list[tuple[Float[Tensor, "1 Hkv N Dh"], Float[Tensor, "1 Hkv N Dh"]]]  # keys and values, layer by layer
SEEN, READING = "opening", "the opening itself"  # in a layout's memo


class Reading:
    """Collects the keys and values of layers; no list, since FSDP hands layouts on with all lists in them copied."""

    def __init__(self):
        self.found: Opening = []


class PromptTuningConfig(Config):
    """Vectors before the tokens; at first those of tokens drawn from the vocabulary (section 3.2)."""

    kind: Literal["prompt"] = "prompt"
    length: Annotated[int, Field(ge=1)] = 20

    def apply(self, model: nn.Module, name: str = NAME) -> None:
        """Open `model` in place. Raises UserError unless it is a decoder whose attention reaches everything."""
        _openings(model, self.length).add(name, Prompt(_drawn(model, self.length)))
        freeze(model, name)


class PrefixTuningConfig(Config):
    """Keys and values in every layer; at first those of tokens drawn from the vocabulary (section 4.3)."""

    kind: Literal["prefix"] = "prefix"
    length: Annotated[int, Field(ge=1)] = 20

    def apply(self, model: nn.Module, name: str = NAME) -> None:
        """As of PromptTuningConfig."""
        openings = _openings(model, self.length)
        layers = [torch.cat(pair) for pair in openings.read(_drawn(model, self.length))]
        openings.add(name, Prefix(torch.stack(layers)))
        freeze(model, name)


class Prompt(nn.Module):
    def __init__(self, vectors: Float[Tensor, "N D"]):
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone())

    def opening(self, openings: "Openings") -> Opening:
        return openings.read(self.vectors)


class Prefix(nn.Module):
    def __init__(self, pairs: Float[Tensor, "L 2 Hkv N Dh"]):
        super().__init__()
        self.pairs = nn.Parameter(pairs.detach().clone())

    def opening(self, openings: "Openings") -> Opening:
        return [(pair[:1], pair[1:]) for pair in self.pairs]


class Openings(nn.Module):
    """The openings of a model by name, of which one is active or none. Called before the model embeds its tokens."""

    def __init__(self, model: Decoder, switch: Switch):
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.switch = switch
        object.__setattr__(self, "model", model)  # no child of its own child
        learned = model.config.embed.position
        self.room = learned.context if isinstance(learned, LearnedPositionConfig) else None
        self._kept: dict[str, tuple[tuple[int, int], Opening]] = {}

    def add(self, name: str, opening: nn.Module) -> None:
        if name in self.adapters:
            raise UserError(f"the model has an adapter {name!r} already")
        self.adapters[name] = opening
        self.switch.add(name)

    def close(self, model: Decoder) -> None:
        """Take all openings away. Raises UserError when one is active: it cannot become a part of the weights."""
        if self.switch.active in self.adapters:
            raise UserError(f"the adapter {self.switch.active!r} is vectors before the text; it cannot be merged")
        for block in model.blocks:
            block.mixer = block.mixer.base
        self.hook.remove()
        del model.openings

    def __call__(self, embed: nn.Module, args: tuple[Any, ...]) -> None:
        """Before `embed` of tokens that stand as args[1], a layout, says: let them stand behind the opening."""
        layout = args[1]
        if READING in layout.memo or self.switch.active not in self.adapters:
            return
        opening = self.opening(self.switch.active)
        length = opening[0][0].shape[2]
        if self.room is not None and layout.start + layout.length + length > self.room:
            raise UserError(f"an opening of {length} and this text need more than the {self.room} learned positions")
        layout.positions = layout.positions + length
        layout.memo[SEEN] = opening

    def forget(self) -> None:
        """Let go of what was read: weights come anew, which neither their version nor their address may tell."""
        self._kept.clear()

    def opening(self, name: str) -> Opening:
        """Where nothing is trained, what was read once is kept."""
        (parameter,) = self.adapters[name].parameters()
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return self.adapters[name].opening(self)
        version = (parameter._version, parameter.data_ptr())
        if name not in self._kept or self._kept[name][0] != version:
            self._kept[name] = version, self.adapters[name].opening(self)
        return self._kept[name][1]

    def read(self, vectors: Float[Tensor, "N D"]) -> Opening:
        """The keys and values that the model makes of these vectors in the places of its first tokens."""
        model = self.model
        layout = Layout(torch.arange(len(vectors), device=vectors.device)[None])
        reading = layout.memo[READING] = Reading()
        embed = model.embed
        x = vectors[None].to(embed.token.weight.dtype)
        x = x if embed.position is None else x + embed.position(layout.positions)
        x = embed.dropout(x if embed.norm is None else embed.norm(x))
        for block in model.blocks:
            x = block(x, layout)
        return reading.found


class OpenedAttention(nn.Module):
    """Attention to the opening too, if there is one."""

    def __init__(self, base: Attention, layer: int):
        super().__init__()
        self.base, self.layer = base, layer

    def init_state(self, *args: Any, **kwargs: Any) -> KVCache:
        """As of the base: openings are not cached with the tokens, whose rows may begin with padding."""
        return self.base.init_state(*args, **kwargs)

    def weights(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B H T T"]:
        """How much tokens take from each other, the opening aside."""
        return self.base.weights(x, layout)

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: KVCache | None = None
    ) -> Float[Tensor, "B T D"]:
        base, memo = self.base, layout.memo
        if SEEN not in memo:
            if READING in memo:
                memo[READING].found.append(base.project(x, layout)[1:])
            return base(x, layout, state)
        q, k, v = base.project(x, layout)
        columns = slice(0, x.shape[1])
        if state is not None:
            k, v, columns = state.extend(k, v, layout.start)
        before, after = memo[SEEN][self.layer]
        k, v = (torch.cat((o.to(t.dtype).expand(len(t), -1, -1, -1), t), 2) for o, t in ((before, k), (after, v)))
        mask = F.pad(layout.mask(columns, None, True), (before.shape[2], 0), value=True)
        dropout = base.config.dropout if self.training else 0.0
        if x.shape[1] == 1 and not dropout:
            y = attend_newest(q, k, v, mask, base.config.scale)
        else:
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                scale=base.config.scale,
                enable_gqa=base.kv_heads != base.heads,
            )
        return base.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


def _openings(model: nn.Module, length: int) -> Openings:
    """Those of a model, which is made to have some."""
    if hasattr(model, "openings"):
        return model.openings
    blocks = list(getattr(model, "blocks", ()))
    plain = isinstance(model, Decoder) and all(
        isinstance(block.mixer, Attention)
        and not block.mixer.biased
        and block.mixer.config.causal
        and block.mixer.config.window is None
        and block.cross is None
        and block.route is None
        for block in blocks
    )
    if not plain or model.repeat is not None or model.config.prefix or model.embed.project is not None:
        raise UserError("adapt: prompts and prefixes are for decoders whose tokens see all before them, without biases")
    model.openings = Openings(model, switch_of(model))
    for layer, block in enumerate(blocks):
        block.mixer = OpenedAttention(block.mixer, layer)
    model.openings.hook = model.embed.register_forward_pre_hook(model.openings)
    return model.openings


def _drawn(model: Decoder, length: int) -> Float[Tensor, "N D"]:
    """The vectors of tokens drawn at random, as they enter the first block but for positions."""
    weight = model.embed.token.weight.detach()
    drawn = torch.randint(len(weight), (length,), device="cpu").to(weight.device)
    return weight[drawn] * model.embed.scale
