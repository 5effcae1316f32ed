"""Language modelling: one masked cross-entropy serves pre-training, fine-tuning and distilled text alike.

What is learned is decided by the data: (tokens, targets, weights).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term
from onefold.objectives.classification import soft_cross_entropy
from onefold.objectives.cross_entropy import linear_cross_entropy


class NextToken(Config):
    """Mean negative log-likelihood of each target, in nats per token of weight 1."""

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats per token"
    kind: Literal["next_token"] = "next_token"
    z_loss: float = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of each target, spread over all tokens; in training only

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, TokenBatch, int], Loss]:
        def loss(model: nn.Module, batch: TokenBatch, step: int) -> Loss:
            smoothing = self.smoothing if model.training else 0.0
            return token_loss(model, model.features(*batch.inputs()), batch, self.z_loss, smoothing)

        return loss


class MaskedAndNext(Config):
    """BERT's two tasks (arXiv 1810.04805, section 3.1): the tokens, and whether the second part follows the first.

    The mean negative log-likelihoods of both are added up; the metric `accuracy` is that of the second.
    """

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats"
    kind: Literal["masked_and_next"] = "masked_and_next"

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BothTasks":
        return BothTasks()


class BothTasks:
    """What MaskedAndNext builds: called as any objective, and tells what its two terms count before the model runs."""

    def __call__(self, model: nn.Module, batch: TokenBatch, step: int) -> Loss:
        if batch.classes is None:
            raise UserError("objective masked_and_next needs pairs of passages: set data.next_sentence=true")
        features = model.features(*batch.inputs())
        tokens = token_loss(model, features, batch)
        follows = soft_cross_entropy(model.classify(features).float(), batch.classes)
        return Loss({**tokens.terms, "next": follows.terms["ce"]}, follows.metrics)

    def counts(self, batch: TokenBatch) -> dict[str, Tensor]:
        return {"ce": batch.weights.sum(), "next": batch.weights.new_tensor(batch.rows)}


def token_loss(
    model: nn.Module,
    features: Float[Tensor, "B T D"],
    batch: TokenBatch,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> Loss:
    """Cross-entropy of the batch's targets, given what the model made of its tokens."""
    targets, weights = batch.targets, batch.weights
    if (asked := batch.asked) is not None:  # the others would cost as much and add nothing
        features = features.gather(1, asked[..., None].expand(-1, -1, features.shape[-1]))
        targets, weights = targets.gather(1, asked), weights.gather(1, asked)
    read, head, bias = model.readout(features)
    nll, z = linear_cross_entropy(read, head, targets, weights, z_loss, bias, smoothing)
    count = batch.weights.sum()
    return Loss({"ce": Term(nll, count)}, {"z": Term(z, count)} if z_loss else {})
