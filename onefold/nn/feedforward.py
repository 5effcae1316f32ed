"""The feed-forward half of a block: widen, bend, narrow."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.core.config import Config
from onefold.nn.linear import Linear

Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"]


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    return {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "relu_squared": lambda x: F.relu(x).square(),  # Primer, arXiv 2109.08668
        "silu": F.silu,
    }[name]


class MLPConfig(Config):
    """Two matrices with an activation between (arXiv 1706.03762, section 3.3)."""

    kind: Literal["mlp"] = "mlp"
    width: int
    activation: Activation = "gelu"
    bias: bool = True

    def build(self, width: int) -> "MLP":
        return MLP(self, width)


class MLP(nn.Module):
    def __init__(self, config: MLPConfig, width: int):
        super().__init__()
        self.up = Linear(width, config.width, bias=config.bias)
        self.activation = activation(config.activation)
        self.out = Linear(config.width, width, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.out(self.activation(self.up(x)))


class GatedMLPConfig(Config):
    """SwiGLU and kin (Shazeer 2020, arXiv 2002.05202): out(act(gate x) · up x)."""

    kind: Literal["gated"] = "gated"
    width: int
    activation: Activation = "silu"
    bias: bool = False

    def build(self, width: int) -> "GatedMLP":
        return GatedMLP(self, width)


class GatedMLP(nn.Module):
    """Gate and up projection lie in one matrix, gate first: one multiplication instead of two."""

    def __init__(self, config: GatedMLPConfig, width: int):
        super().__init__()
        self.gate_up = Linear(width, 2 * config.width, bias=config.bias)
        self.activation = activation(config.activation)
        self.out = Linear(config.width, width, bias=config.bias)
        self.packed = {"gate_up.weight": (config.width, config.width)}

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.out(gated(self.gate_up(x), self.activation))


def gated(both: Float[Tensor, "*rows twice"], bend: Callable[[Tensor], Tensor]) -> Float[Tensor, "*rows half"]:
    """bend(gate) · up, which lie side by side."""
    if bend is F.silu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _SwiGLU.apply(both)
    gate, up = both.chunk(2, dim=-1)
    return bend(gate) * up


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up. Its gradients are written side by side; autograd makes them apart and copies them together."""

    @staticmethod
    def forward(ctx, both):
        gate, up = both.chunk(2, dim=-1)
        bent = F.silu(gate)
        ctx.save_for_backward(both, bent)
        return bent * up

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        both, bent = ctx.saved_tensors
        found = torch.empty_like(both)
        (gate, up), (d_gate, d_up) = both.chunk(2, dim=-1), found.chunk(2, dim=-1)
        torch.mul(gradient, up, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_up, gate, grad_input=d_gate)
        torch.mul(gradient, bent, out=d_up)
        return found
