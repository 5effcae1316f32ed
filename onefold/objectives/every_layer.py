"""Deep supervision: every layer of a decoder learns to answer, so that tokens may leave it early when it writes.

    loss = Σ ω_i · cross-entropy(head(norm(layer i))),  ω_i = i / Σ_j j

(CALM, arXiv 2207.07061, section 3.2, after arXiv 1910.10073.) The head and the norm before it are those of the model.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.models.transformer import Decoder
from onefold.objectives.base import Loss, Term
from onefold.objectives.cross_entropy import linear_cross_entropy


class EveryLayer(Config):
    """The mean negative log-likelihood of each target, in nats per token of weight 1, averaged over layers by ω.

    Evaluations also have `ce`, what the whole model says, as next_token measures it, and `ce_layers`, that of each
    layer.
    """

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats per token, mean of layers"
    kind: Literal["every_layer"] = "every_layer"

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, TokenBatch, int], Loss]:
        return _loss


def _loss(model: nn.Module, batch: TokenBatch, step: int) -> Loss:
    if not isinstance(model, Decoder):
        raise UserError("objective every_layer is for decoders, whose layers can all be asked; use next_token")
    layers, targets, weights = model.layers(*batch.inputs()), batch.targets, batch.weights
    if (asked := batch.asked) is not None:  # the others would cost as much and add nothing
        layers = layers.gather(2, asked[None, ..., None].expand(len(layers), -1, -1, layers.shape[-1]))
        targets, weights = targets.gather(1, asked), weights.gather(1, asked)
    depth, count = len(layers), batch.weights.sum()
    shares = torch.arange(1, depth + 1, device=layers.device) * (2 / (depth * (depth + 1)))
    read, head, bias = model.readout(layers)
    if model.training:  # all layers at once: one gradient of the head is kept, not one of each
        each = shares[:, None, None] * weights
        nll, _ = linear_cross_entropy(read, head, targets.expand(depth, -1, -1), each, bias=bias)
        return Loss({"every_layer": Term(nll, count)})
    said = torch.stack([linear_cross_entropy(x, head, targets, weights, bias=bias)[0] for x in read])
    return Loss(
        {"every_layer": Term(shares @ said, count)}, {"ce": Term(said[-1], count), "ce_layers": Term(said, count)}
    )
