"""One number of a vector, in fp32 whatever the model computes in: decisions should not be rounded."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Scalar(nn.Module):
    """w · x + b. It begins as b, and w as noise that makes x of length √D a number of deviation `std`."""

    def __init__(self, width: int, bias: float = 0.0, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).normal_(std=std * width**-0.5))
        self.bias = nn.Parameter(torch.full((1,), bias))

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
        # A product of matrices would be autocast.
        return (x.float() * self.weight.float()).sum(-1) + self.bias[0].float()
