"""Normalisation of channels over a batch, which remembers what it saw for the time after training."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.core.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation of channels, of pictures or of vectors (arXiv 1502.03167).

    In training by the mean and variance of the rows that are computed together, a micro-batch on one process: they, not
    the batch, are what a published batch size for these statistics stands for. Outside of training by their running
    averages, which are buffers: part of the model, not parameters.
    """

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Float[Tensor, "B C *places"]) -> Float[Tensor, "B C *places"]:
        if self.training and x.numel() == x.shape[1]:
            raise UserError("batch norm compares rows: let a step compute two at least (trainer.batch, micro_batch)")
        weights = (self.weight, self.bias, self.training, self.momentum, self.eps)
        return F.batch_norm(x, self.mean, self.variance, *weights)
