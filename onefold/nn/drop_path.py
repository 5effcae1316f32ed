"""Stochastic depth: in training, a branch is left out for some rows of the batch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """x, or zeros for a share `rate` of the rows, the others scaled up to keep the mean (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


def rising(rate: float, depth: int) -> list[float]:
    """The rates of `depth` blocks: from 0 in the first, in equal steps, to `rate` in the last."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()  # also while a model is built without memory
