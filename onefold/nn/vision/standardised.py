"""Convolutions whose weights are normalised, so that activations need not be (arXiv 2101.08692)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class StandardisedConv(nn.Module):
    """Scaled weight standardisation: every filter has mean 0 and variance 1 / fan-in, times a learned gain.

    Padding makes the sides ceil(H / stride) long; where it is odd, the odd row comes last ("same", as in TensorFlow).
    """

    def __init__(self, inward: int, outward: int, kernel: int, stride: int = 1, groups: int = 1, eps: float = 1e-5):
        super().__init__()
        self.stride, self.groups, self.eps = stride, groups, eps
        self.weight = nn.Parameter(torch.empty(outward, inward // groups, kernel, kernel))
        self.gain = nn.Parameter(torch.ones(outward))
        self.bias = nn.Parameter(torch.zeros(outward))

    def standardised(self) -> Float[Tensor, "D C k k"]:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        scale = self.gain[:, None, None, None] * torch.rsqrt(variance + self.eps)
        return (self.weight - mean) * (scale / math.sqrt(self.weight[0].numel()))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        kernel, stride = self.weight.shape[-1], self.stride
        high, wide = (max(kernel - (side % stride or stride), 0) for side in x.shape[2:])
        padding: int | tuple[int, int] = (high // 2, wide // 2)
        if high % 2 or wide % 2:
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            padding = 0
        return F.conv2d(x, self.standardised(), self.bias, stride, padding, groups=self.groups)
