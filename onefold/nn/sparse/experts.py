"""A feed-forward layer of many experts, of which each token sees few (arXiv 1701.06538, 2101.03961, 2401.04088).

    tokens → router → sorted by expert → each expert's own matrices → weighed and added up per token

Parameters grow with the number of experts, arithmetic does not.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig, activation, gated
from onefold.nn.own_losses import Told
from onefold.nn.sparse import fused
from onefold.nn.sparse.fused import grouped_mlp
from onefold.nn.sparse.grouped import gather, grouped_linear, spread
from onefold.nn.sparse.routing import AnyRouter, ExpertChoiceConfig, Routes, TopKConfig

MLPs = MLPConfig | GatedMLPConfig
LEAST = 0.1  # of a capacity: below, whatever tokens ask for, nine of ten get nothing
Exchange = Callable[[nn.Module, Tensor, Tensor], Tensor]  # what experts elsewhere make of rows, up to `ends`


class ExpertsConfig(Config):
    """`experts` copies of `expert`; a layer of dense ones beside others of experts is the decoder's `pattern`.

    `shared` reads every token, and what it makes is added (arXiv 2401.06066); with `mixed` the two are weighed by a
    softmax that the token decides (Residual-MoE, DeepSpeed-MoE, arXiv 2201.05596, section 4.1.2).

    `capacity` limits what an expert reads in training: so many times its even share of the assignments, over all
    tokens of a micro-batch; what is left over is dropped, and the log tells how much. Elsewhere nothing is dropped, so
    that what a model says of a text does not depend on what is read beside it.
    """

    kind: Literal["experts"] = "experts"
    experts: Annotated[int, Field(ge=1)]
    expert: Annotated[MLPs, Slot()]
    router: Annotated[AnyRouter, Slot()] = TopKConfig()
    capacity: Annotated[float, Field(gt=0)] | None = None  # None: nothing is ever dropped
    shared: Annotated[MLPs, Slot()] | None = None
    mixed: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "ExpertsConfig":
        if getattr(self.router, "needs", lambda: 1)() > self.experts:
            raise ValueError(
                f"a token cannot see {self.router.needs()} of {self.experts} experts: take fewer, or have more"
            )
        if self.experts > 1 and isinstance(self.router, TopKConfig) and self.router.normalise and self.router.k == 1:
            raise ValueError("one expert of weight 1 teaches the router nothing: set router.normalise=false")
        if isinstance(self.router, ExpertChoiceConfig) and self.capacity is not None:
            raise ValueError("experts that choose have no capacity: router.each says how much they take")
        if self.capacity is not None and self.capacity < LEAST:
            raise ValueError(f"capacity {self.capacity:g} drops nearly everything: 1 to 2 is usual, null drops nothing")
        if self.mixed and self.shared is None:
            raise ValueError("mixed weighs experts and `shared`, which is missing")
        return self

    def reading(self) -> "ExpertsConfig":
        """The same without what matters in training only."""
        unsaid = dict.fromkeys(("jitter", "z_loss", "balance", "importance", "load"), 0.0)
        given = type(self.router).model_fields
        router = self.router.model_copy(update={name: zero for name, zero in unsaid.items() if name in given})
        return self.model_copy(update={"router": router, "capacity": None})

    def build(self, width: int) -> "Experts":
        return Experts(self, width)


class GroupedLinear(nn.Module):
    """A matrix, and perhaps a bias, for each expert."""

    def __init__(self, experts: int, inward: int, outward: int, bias: bool):
        super().__init__()
        self.experts, self.in_features, self.out_features = experts, inward, outward
        self.weight = nn.Parameter(torch.empty(experts, outward, inward).normal_(std=inward**-0.5))
        self.bias = nn.Parameter(torch.zeros(experts, outward)) if bias else None
        self.packed = {"bias": ()}  # vectors, no matrix

    def forward(self, x: Float[Tensor, "M inward"], ends: Tensor) -> Float[Tensor, "M outward"]:
        return grouped_linear(x, self.weight, self.bias, ends)

    def dense(self) -> Float[Tensor, "E outward inward"]:
        """The matrices, as those layers tell them, too, that store them otherwise."""
        return self.weight


class GroupedMLP(nn.Module):
    """An MLP, gated or not, for each expert; names as in feedforward.py."""

    def __init__(self, config: MLPs, experts: int, width: int):
        super().__init__()
        self.gated = isinstance(config, GatedMLPConfig)
        inner = GroupedLinear(experts, width, (1 + self.gated) * config.width, config.bias)
        self.add_module("gate_up" if self.gated else "up", inner)
        if self.gated:
            self.packed = {"gate_up.weight": (config.width, config.width)}
        self.activation = activation(config.activation)
        self.out = GroupedLinear(experts, config.width, width, config.bias)

    def forward(self, x: Float[Tensor, "M D"], ends: Tensor) -> Float[Tensor, "M D"]:
        inner = self.gate_up if self.gated else self.up
        if _plain(inner) and _plain(self.out) and fused.suits(x, inner.weight):
            return grouped_mlp(x, ends, (inner.weight, inner.bias), (self.out.weight, self.out.bias), self._bent)
        return self.out(self._bent(inner(x, ends)), ends)

    def _bent(self, inner: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows H"]:
        return gated(inner, self.activation) if self.gated else self.activation(inner)


def _plain(layer: nn.Module) -> bool:
    """Whether a layer is its matrices and nothing else: no adapter, no hook."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is GroupedLinear and not any(hooks)


class Experts(nn.Module):
    """What it tells while somebody listens (own_losses.py): its router's losses, loads, and what was dropped.

    Losses are told wherever gradients are wanted, also of a model that is trained without anything random, in `eval`.
    """

    def __init__(self, config: ExpertsConfig, width: int):
        super().__init__()
        self.capacity = config.capacity
        self.router = config.router.build(width, config.experts)
        self.experts = GroupedMLP(config.expert, config.experts, width)
        self.shared = config.shared.build(width) if config.shared else None
        self.mix = nn.Linear(width, 2) if config.mixed else None
        self.told: list[Told] | None = None
        self.exchange: Exchange | None = None  # set from outside where experts lie on several processes; None: all here

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        rows = x.flatten(0, -2)
        routes, losses = self.router(rows, self.capacity if self.training else None)
        if self.told is not None:
            self.told.append(Told(len(rows), losses if torch.is_grad_enabled() else {}, self._figures(routes)))
        given = spread(rows, routes.tokens, routes.places), routes.ends
        y = self.experts(*given) if self.exchange is None else self.exchange(self.experts, *given)
        y = y * routes.weights[:, None].to(y.dtype)
        return self.joined(x, gather(y, routes.tokens, routes.places, len(rows)).view_as(x))

    def joined(self, x: Float[Tensor, "B T D"], y: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What the layer makes of x, of which the experts made y: `shared` beside them."""
        if self.shared is None:
            return y
        if self.mix is None:
            return y + self.shared(x)
        share = self.mix(x).float().softmax(-1).to(y.dtype)
        return y * share[..., :1] + self.shared(x) * share[..., 1:]

    def _figures(self, routes: Routes) -> dict[str, Tensor]:
        """Share of what was dropped; in training how much more than its even share the busiest expert was given, and
        the share of experts that were given nothing; elsewhere each expert's share of all."""
        if not (self.training or torch.is_grad_enabled()):
            return {"dropped": routes.dropped, "load": routes.load}
        load = routes.load
        return {"dropped": routes.dropped, "busiest": load.max() * len(load), "idle": (load == 0).float().mean()}


def upcycled(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model that has dense layers where `model` has experts, as it takes them.

    Each expert begins as the dense layer; routers begin afresh (Sparse Upcycling, arXiv 2212.05055). `shared` begins as
    it, too, where it fits and the two are `mixed`; where they are added up, `shared` begins by adding nothing. Where
    weights of a token's experts add up to 1, the model says at first what the dense one did, unless `mixed` weighs a
    `shared` that could not begin so. Errors: UserError where the dense layer does not fit the experts.
    """
    found = dict(weights)
    for name, layer in model.named_modules():
        if not isinstance(layer, Experts) or f"{name}.router.weight" in found:
            continue
        for leaf, own in layer.named_parameters():
            part, _, rest = leaf.partition(".")
            dense = weights.get(f"{name}.{rest}") if part in ("experts", "shared") else None
            found.pop(f"{name}.{rest}", None)
            begun = own.detach()
            if part == "shared" and layer.mix is None and rest.startswith("out."):
                begun = torch.zeros_like(begun)
            elif part == "experts" and dense is not None:
                if dense.shape != own.shape[1:]:
                    there, here = list(dense.shape), list(own.shape[1:])
                    raise UserError(f"{name}: {rest} of the dense layer is {there}, that of an expert {here}")
                begun = dense.expand(own.shape)
            elif dense is not None and dense.shape == own.shape:
                begun = dense
            found[f"{name}.{leaf}"] = begun
    return found
