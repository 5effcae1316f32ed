"""Language modelling: one masked cross-entropy serves pre-training, fine-tuning and distilled text alike.

What is learned is decided by the data: (tokens, targets, weights).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.objectives.base import Loss, Term
from onefold.objectives.cross_entropy import linear_cross_entropy


class NextToken(Config):
    """Mean negative log-likelihood of each target, in nats per token of weight 1."""

    kind: Literal["next_token"] = "next_token"
    z_loss: float = 0.0

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, TokenBatch, int], Loss]:
        def loss(model: nn.Module, batch: TokenBatch, step: int) -> Loss:
            features = model.features(batch.tokens, batch.positions, batch.segments)
            read, head, bias = model.readout(features)
            nll, z = linear_cross_entropy(read, head, batch.targets, batch.weights, self.z_loss, bias)
            count = batch.weights.sum()
            return Loss({"ce": Term(nll, count)}, {"z": Term(z, count)} if self.z_loss else {})

        return loss
