"""Early exit (CALM, Schuster et al. 2022, arXiv 2207.07061): a token leaves after the first layer that is sure.

    after layer i:  confidence ≥ λ(t)  →  the head answers now, and this state stands for the layers not computed
    λ(t) = 0.9 λ + 0.1 exp(-τ t / N)      early tokens are watched more closely, since all that follow build on them

Layers that a token skipped still owe their keys and values, which are made of the state that it left with (section
3.3). They are made when a later token gets that far, for all that left before it at once: one product where one token
at a time would read the same weights for each. Models that were trained so that every layer can answer
(objectives/every_layer.py) gain from it; calibrate.py finds λ.

Of several texts together each token leaves where it would alone: its state is then held, while the others go on, so a
batch is as deep as its last text. It saves most where one text is written.
"""

import hashlib
import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.adapt.surgery import switch_of
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.models.state import DecoderState
from onefold.models.transformer import Decoder
from onefold.nn.attention import Layout

OWED = 64  # columns that a layer may owe; then all layers make up for them
CARD = "early_exit"  # where a model's card has what was calibrated
Measure = Literal["softmax", "state", "classifier"]


class ExitRule(Config):
    """When a layer counts as sure (section 3.4).

    softmax: the two likeliest tokens lie so far apart in probability. state: the layer has hardly turned the state that
    it read (cosine). classifier: a logistic regression on the layer's features says that the last layer would agree.
    """

    measure: Measure = "softmax"
    threshold: Annotated[float, Field(ge=0, le=1)]  # λ
    temperature: Annotated[float, Field(ge=0)] = 4.0  # τ: how fast the threshold falls to 0.9 λ
    tokens: Annotated[int, Field(ge=1)] = 64  # N: of a text, over which it does
    classifier: tuple[float, ...] = ()  # of the features, and what is added

    def at(self, written: int) -> float:
        """λ(t) when so many tokens have been written (equation 5)."""
        return 0.9 * self.threshold + 0.1 * math.exp(-self.temperature * written / self.tokens)


class EarlyExit(nn.Module):
    """A decoder as engine.generate knows it, but its `features` are logits already, of the last column alone.

    `tokens` have been written since the beginning, by `layers` layers in all: their quotient is what writing cost.
    """

    def __init__(self, network: Decoder, rule: ExitRule):
        """Raises UserError for a model that has no layers to leave after."""
        super().__init__()
        plain = isinstance(network, Decoder) and len(network.blocks) > 1 and network.repeat is None
        if not plain or any(block.cross is not None or block.route is not None for block in network.blocks):
            raise UserError("early exit is for decoders of several layers, one after another")
        if hasattr(network, "openings"):
            raise UserError("early exit does not go with vectors before the text (prompt or prefix tuning)")
        if rule.measure == "classifier" and len(rule.classifier) != network.config.width + 1:
            raise UserError("early exit: the classifier is that of a model of another width; calibrate this one")
        self.network, self.rule = network, rule
        self.depth = len(network.blocks)
        self.tokens = self.layers = 0
        weights = torch.tensor(rule.classifier, device=network.embed.token.weight.device)
        self.register_buffer("classifier", weights, persistent=False)

    @property
    def mean_layers(self) -> float:
        """Layers that a token took, of `depth`; the prompt's, which are read at once, are not counted."""
        return self.layers / max(1, self.tokens)

    def init_state(self, batch: int, capacity: int) -> "ExitState":
        return ExitState(self.network.init_state(batch, capacity), self.depth)

    def head(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        return logits

    def prompt(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None, *, state: "ExitState"
    ) -> Float[Tensor, "B 1 V"]:
        """All layers read the columns, at once; the logits of the last."""
        state.settle(self.network)
        features = self.network.features(tokens, positions, state=state.inner)
        state.read(tokens.shape[1])
        return self.network.head(features[:, -1:])

    def features(self, tokens: Int[Tensor, "B 1"], *, state: "ExitState") -> Float[Tensor, "B 1 V"]:
        """The logits behind a column that has been written, and may leave."""
        network, threshold = self.network, self.rule.at(state.written)
        layout = state.inner.layout(tokens, None)
        x, said, done = network.enter(tokens, layout), None, None
        going = rows = len(tokens)
        for i, block in enumerate(network.blocks):
            state.settle_layer(block, i)
            before, y = x, block(x, layout, state.inner.layers[i])
            x = y if done is None else torch.where(done[:, None, None], x, y)
            state.filled[i] += 1
            self.layers += going
            if i + 1 == self.depth:
                said = None
                break
            sure, said = self._confidence(x, before)
            leaves = sure >= threshold if done is None else done | (sure >= threshold)
            going = rows - int(leaves.sum())
            if not going:
                break
            done = leaves if going < rows else None
        state.leave(x, network)
        self.tokens += rows
        return self._answer(x) if said is None else said

    def _answer(self, x: Float[Tensor, "B 1 D"]) -> Float[Tensor, "B 1 V"]:
        return self.network.head(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.network.norm is None else self.network.norm(x)

    def _confidence(self, x: Tensor, before: Tensor) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 1 V"] | None]:
        """How sure the layer is that made x of `before`, and its logits where they were needed to know."""
        if self.rule.measure == "state":
            return F.cosine_similarity(x[:, 0].float(), before[:, 0].float(), dim=-1), None
        if self.rule.measure == "classifier":
            return classified(self._normed(x)[:, 0], self.classifier), None
        logits = self._answer(x)
        return gap(logits[:, 0]), logits


class ExitState:
    """A decoder's state whose later layers may lag behind: of the newest columns they owe keys and values, which are to
    be made of the states that those columns left with."""

    def __init__(self, inner: DecoderState, depth: int):
        self.inner = inner
        self.filled = [0] * depth  # columns that each layer has; they never grow from one layer to the next
        self.written = 0  # tokens that may have left
        self._left: list[Tensor] = []  # Float[B, 1, D] of the newest columns, as many as any layer owes
        self._layouts: dict[int, Layout] = {}  # of owed columns, by the first of them, until there are more

    @property
    def prefix(self) -> bool:
        return self.inner.prefix

    def read(self, columns: int) -> None:
        """All layers have read so many more."""
        self.filled = [have + columns for have in self.filled]

    def leave(self, x: Float[Tensor, "B 1 D"], network: Decoder) -> None:
        """The newest column has left, with this state."""
        self.inner.length += 1
        self.written += 1
        self._left.append(x)
        self._layouts.clear()
        self._trim()
        if len(self._left) == OWED:
            self.settle(network)

    def settle(self, network: Decoder) -> None:
        """Let all layers make up for what they owe."""
        for i, block in enumerate(network.blocks):
            self.settle_layer(block, i)
        self._trim()

    def settle_layer(self, block: nn.Module, i: int) -> None:
        """Let a layer make up for what it owes."""
        start, stop = self.filled[i], self.inner.length
        if start == stop:
            return
        if start not in self._layouts:
            columns, pad = torch.arange(start, stop, device=self._left[0].device)[None], self.inner.pad
            truth = columns if pad is None else (columns - pad[:, None]).clamp(min=0)
            self._layouts[start] = Layout(truth, start=start, pad=pad)
        block.remember(torch.cat(self._left[start - stop :], 1), self._layouts[start], self.inner.layers[i])
        self.filled[i] = stop

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was."""
        self.inner.reorder(rows)
        self._left = [x[rows] for x in self._left]
        self._layouts.clear()

    def _trim(self) -> None:
        owed = self.inner.length - self.filled[-1]
        del self._left[: len(self._left) - owed]


def gap(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """How much likelier the likeliest token is than the next."""
    best = logits.float().softmax(-1).topk(2).values
    return best[..., 0] - best[..., 1]


def classified(features: Float[Tensor, "*N D"], classifier: Float[Tensor, " D+1"]) -> Float[Tensor, "*N"]:
    """What a logistic regression makes of a layer's features: the probability that the last layer says the same."""
    return (features.float() @ classifier[:-1] + classifier[-1]).sigmoid()


def fingerprint(network: nn.Module) -> str:
    """Tells weights from others by a few numbers of each, as bfloat16 has them, in which they may be stored.

    Weights that an adapter is merged into for now count as they are without it.
    """
    found, own = hashlib.sha256(), {id(weight): before for weight, before in switch_of(network).replaced}
    for name, parameter in sorted(network.named_parameters()):
        weight = own.get(id(parameter), parameter).detach()
        few = weight.flatten()[:: max(1, weight.numel() // 16)].to(torch.bfloat16)
        found.update(f"{name} {few.tolist()}".encode())
    return found.hexdigest()
