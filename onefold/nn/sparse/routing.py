"""Which experts read which tokens: routers, and the losses that keep experts busy alike.

Logits and probabilities are fp32 whatever the model computes in ("selective precision", arXiv 2101.03961, section
2.4). The balance loss is E · Σ_e f_e P_e everywhere: f_e is the share of all assignments (k of them a token) that fall
to expert e before any is dropped, P_e its mean probability. It is 1 where all are busy alike, and at most E. Switch
publishes the same; what Mixtral's files mean is k times that, since they add f up over a token's choices; GShard's is
1/E² of it, with f of first choices only. The z-loss is the mean of logsumexp(logits)² (ST-MoE, arXiv 2202.08906).
Padding is routed as text is.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config

Coefficient = Annotated[float, Field(ge=0)]
Losses = dict[str, tuple[Tensor, float]]  # name → (mean, weight)


class Routes(NamedTuple):
    """Assignments sorted by expert: rows up to ends[0] are the first one's, and so on; nobody reads those behind."""

    tokens: Int[Tensor, " M"]
    weights: Float[Tensor, " M"]  # of what the expert makes of the token, in the sum over a token's experts
    ends: Int[Tensor, " E"]
    places: Int[Tensor, "k N"] | None  # the row of each of a token's choices; None where experts choose
    load: Float[Tensor, " E"]  # share of the assignments that fall to each expert, before any is dropped
    dropped: Float[Tensor, ""]  # share of the assignments that nobody reads; where experts choose, of the tokens


class RouterConfig(Config):
    """What routers have in common. A token's input to the router is multiplied by 1 ± jitter in training."""

    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    z_loss: Coefficient = 0.0

    def needs(self) -> int:
        """How many experts there must be."""
        return 1


class TopKConfig(RouterConfig):
    """The k likeliest experts, by a softmax over their logits alone (Mixtral, arXiv 2401.04088, section 2.1).

    normalise=false: by a softmax over all experts' logits, so that weights need not add up to 1.
    """

    kind: Literal["top_k"] = "top_k"
    k: Annotated[int, Field(ge=1)] = 2
    normalise: bool = True
    balance: Coefficient = 0.01

    def needs(self) -> int:
        return self.k

    def build(self, width: int, experts: int) -> "TokenRouter":
        return TokenRouter(self, width, experts)

    def choose(self, probabilities: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, experts = probabilities.topk(self.k, -1)
        return weights / weights.sum(-1, keepdim=True) if self.normalise else weights, experts, None


class SwitchConfig(RouterConfig):
    """The likeliest expert, weighed by its probability, which is how the router learns (arXiv 2101.03961)."""

    kind: Literal["switch"] = "switch"
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.01
    balance: Coefficient = 0.01

    def build(self, width: int, experts: int) -> "TokenRouter":
        return TokenRouter(self, width, experts)

    def choose(self, probabilities: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, experts = probabilities.max(-1, keepdim=True)
        return weights, experts, None


class GShardConfig(RouterConfig):
    """The two likeliest; in training the second one at random, the surer the larger its weight w: with probability 2w.

    Weights of the two add up to 1 before that (arXiv 2006.16668, algorithm 1).
    """

    kind: Literal["gshard"] = "gshard"
    balance: Coefficient = 0.01

    def needs(self) -> int:
        return 2

    def build(self, width: int, experts: int) -> "TokenRouter":
        return TokenRouter(self, width, experts)

    def choose(self, probabilities: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, experts = probabilities.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        wanted = None
        if training:
            wanted = torch.rand_like(weights) < 2 * weights.detach()  # of the first one, at least 1
        return weights, experts, wanted


class NoisyTopKConfig(RouterConfig):
    """Noise of a learned size before the k largest are taken (Shazeer et al., arXiv 1701.06538, section 2.1).

    Its losses are those of the paper (section 4 and appendix A): the squared coefficients of variation of each
    expert's importance, the sum of its weights, and of its load, a smooth estimate of how many tokens it is given.
    """

    kind: Literal["noisy_top_k"] = "noisy_top_k"
    k: Annotated[int, Field(ge=1)] = 4
    importance: Coefficient = 0.1
    load: Coefficient = 0.1

    def needs(self) -> int:
        return self.k

    def build(self, width: int, experts: int) -> "NoisyRouter":
        return NoisyRouter(self, width, experts)


class ExpertChoiceConfig(RouterConfig):
    """Each expert takes the tokens that are likeliest its own (arXiv 2202.09368): all are busy alike.

    Not causal: whether an expert takes a token depends on all tokens that are read with it, also on later ones.
    """

    kind: Literal["expert_choice"] = "expert_choice"
    each: Annotated[float, Field(gt=0)] = 2.0  # experts that a token has on average

    def needs(self) -> int:
        return math.ceil(self.each)

    def build(self, width: int, experts: int) -> "ExpertChoiceRouter":
        return ExpertChoiceRouter(self, width, experts)


AnyRouter = TopKConfig | SwitchConfig | GShardConfig | NoisyTopKConfig | ExpertChoiceConfig


class TokenRouter(nn.Module):
    """Tokens choose by their probabilities."""

    def __init__(self, config: TopKConfig | SwitchConfig | GShardConfig, width: int, experts: int):
        super().__init__()
        self.config = config
        self.weight = _fresh(experts, width)

    def forward(self, x: Float[Tensor, "N D"], capacity: float | None = None) -> tuple[Routes, Losses]:
        """capacity: of an expert, times its even share of the assignments; None: it reads all that fall to it."""
        config = self.config
        with _fp32(x.device.type):
            logits = _logits(x, self.weight, config.jitter if self.training else 0.0)
            probabilities = logits.softmax(-1)
            weights, experts, wanted = config.choose(probabilities, self.training)
            routes = by_expert(weights, experts, logits.shape[1], capacity, wanted)
            balance = logits.shape[1] * (routes.load * probabilities.mean(0)).sum()
            return routes, _weighed({"balance": (balance, config.balance), **_z(logits, config)})


class NoisyRouter(nn.Module):
    """Tokens choose by noisy logits; without noise when they are not trained on."""

    def __init__(self, config: NoisyTopKConfig, width: int, experts: int):
        super().__init__()
        self.config = config
        self.weight = _fresh(experts, width)
        self.noise_scale = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x: Float[Tensor, "N D"], capacity: float | None = None) -> tuple[Routes, Losses]:
        """As TokenRouter's."""
        config = self.config
        with _fp32(x.device.type):
            clean = noisy = _logits(x, self.weight, config.jitter if self.training else 0.0)
            losses = _z(clean, config)
            E = clean.shape[1]
            if learns := self.training or torch.is_grad_enabled():
                spread = F.softplus(F.linear(x.float(), self.noise_scale.float())) + 1e-2  # a normal needs some width
            if self.training:
                noisy = clean + spread * torch.randn_like(clean)
            top, experts = noisy.topk(min(config.k + 1, E), -1)
            weights = top[:, : config.k].softmax(-1)
            routes = by_expert(weights, experts[:, : config.k], E, capacity)
            if learns:
                gates = torch.zeros_like(noisy).scatter(1, experts[:, : config.k], weights)
                losses["importance"] = (_variation(gates.sum(0)), config.importance)
                if config.k < E:
                    last, following = top[:, config.k - 1, None], top[:, config.k, None]
                    others = torch.where(noisy > following, following, last)  # the k-th largest of the others
                    chances = torch.special.ndtr((clean - others) / spread)  # of being among the k
                    losses["load"] = (_variation(chances.sum(0)), config.load)
            return routes, _weighed(losses)


class ExpertChoiceRouter(nn.Module):
    """Experts choose."""

    def __init__(self, config: ExpertChoiceConfig, width: int, experts: int):
        super().__init__()
        self.config = config
        self.weight = _fresh(experts, width)

    def forward(self, x: Float[Tensor, "N D"], capacity: float | None = None) -> tuple[Routes, Losses]:
        """capacity: must be None; an expert reads as many as it takes."""
        with _fp32(x.device.type):
            logits = _logits(x, self.weight, self.config.jitter if self.training else 0.0)
            N, E = logits.shape
            each = min(N, math.ceil(self.config.each * N / E))
            weights, tokens = logits.softmax(-1).T.topk(each, -1)  # [E, each]
            missed = 1 - torch.zeros(N, device=x.device).index_fill(0, tokens.flatten(), 1).mean()
            ends = torch.arange(1, E + 1, device=x.device, dtype=torch.int32) * each
            even = torch.full((E,), 1 / E, device=x.device)
            routes = Routes(tokens.flatten(), weights.flatten(), ends, None, even, missed)
            return routes, _weighed(_z(logits, self.config))


def by_expert(
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    count: int,
    capacity: float | None = None,
    wanted: Bool[Tensor, "N k"] | None = None,
) -> Routes:
    """Sort what tokens have chosen by expert. Where one is full, first choices go before second ones, and within
    these earlier tokens before later ones (arXiv 2006.16668, algorithm 1). wanted: choices that hold; None: all."""
    N, k = experts.shape
    chosen = experts.T.flatten()  # [k·N]: first choices, then second ones
    if wanted is not None:
        chosen = torch.where(wanted.T.flatten(), chosen, count)
    columns = torch.arange(k * N, device=chosen.device)
    given = _counts(chosen, count)
    read, order = given, chosen.argsort(stable=True)
    if capacity is not None:
        limit = max(1, math.ceil(capacity * k * N / count))
        before = F.pad(given.cumsum(0), (1, 0))[chosen]  # where each expert's assignments begin
        places = torch.empty_like(order).scatter_(0, order, columns)
        chosen = torch.where(places - before < limit, chosen, count)
        read, order = given.clamp(max=limit), chosen.argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, columns)
    asked = given.sum().clamp(min=1)
    return Routes(
        tokens=order % N,
        weights=weights.T.flatten()[order],
        ends=read.cumsum(0).int(),
        places=places.view(k, N),
        load=given / asked,
        dropped=(given.sum() - read.sum()) / asked,
    )


def _fp32(device: str) -> AbstractContextManager:
    """No autocast, of which devices without content know nothing."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _fresh(experts: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(experts, width).normal_(std=0.02))


def _logits(x: Tensor, weight: Tensor, jitter: float) -> Tensor:
    x = x.float()
    if jitter:
        x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
    return F.linear(x, weight.float())


def _counts(chosen: Tensor, count: int) -> Tensor:
    """How often each of 0 … count - 1 occurs, without waiting for a device."""
    return torch.zeros(count + 1, dtype=torch.long, device=chosen.device).scatter_add_(
        0, chosen, torch.ones_like(chosen)
    )[:count]


def _z(logits: Tensor, config: RouterConfig) -> Losses:
    return {"router_z": (logits.logsumexp(-1).square().mean(), config.z_loss)}


def _variation(x: Tensor) -> Tensor:
    """The squared coefficient of variation."""
    return x.var(correction=0) / x.mean().square().clamp(min=1e-10)


def _weighed(losses: Losses) -> Losses:
    return {name: pair for name, pair in losses.items() if pair[1]}
