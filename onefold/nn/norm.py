"""Normalisation over the width."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.core.config import Config


class LayerNormConfig(Config):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450)."""

    kind: Literal["layer"] = "layer"
    eps: float = 1e-5
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)


class RMSNormConfig(Config):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    kind: Literal["rms"] = "rms"
    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        return RMSNorm(width, self.eps)


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the statistics in fp32 whatever the type of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
