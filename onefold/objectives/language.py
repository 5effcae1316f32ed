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
            features, targets, weights = model.features(*batch.inputs()), batch.targets, batch.weights
            if (asked := batch.asked) is not None:  # the others would cost as much and add nothing
                features = features.gather(1, asked[..., None].expand(-1, -1, features.shape[-1]))
                targets, weights = targets.gather(1, asked), weights.gather(1, asked)
            read, head, bias = model.readout(features)
            nll, z = linear_cross_entropy(read, head, targets, weights, self.z_loss, bias)
            count = batch.weights.sum()
            return Loss({"ce": Term(nll, count)}, {"z": Term(z, count)} if self.z_loss else {})

        return loss
