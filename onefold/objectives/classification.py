"""Classification: cross-entropy against probabilities, which one-hot, smoothed and mixed targets all are."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import ImageBatch, LabelledTextBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term, with_classes

FEW = 5  # classes up to which being among the first five says nothing


class Classification(Config):
    """Mean cross-entropy of each row (a picture, a text), in nats: -Σ_c target_c · log softmax(logits)_c.

    Metrics: `accuracy`, and `top5` where there are more than five classes: the share of rows whose likeliest target is
    the first, or among the first five, of the model's classes.
    """

    reads: ClassVar = ImageBatch | LabelledTextBatch
    task: ClassVar = "sequence"
    loss_unit: ClassVar = "nats per example"
    kind: Literal["classification"] = "classification"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of each target, spread over all classes; in training only

    def going_on(self, start: Config, classes: int) -> Config:
        """See onefold.objectives.base.body_of."""
        return with_classes(start, classes)

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, Any, int], Loss]:
        def loss(model: nn.Module, batch: ImageBatch | LabelledTextBatch, step: int) -> Loss:
            if batch.targets is None:
                raise UserError("objective classification needs data with classes; these have none")
            features = model.features(*batch.inputs())
            texts = isinstance(batch, LabelledTextBatch)  # whose padding says nothing of their classes
            logits = model.classify(features, batch.segments) if texts else model.head(features)
            return soft_cross_entropy(logits.float(), batch.targets, self.smoothing if model.training else 0.0)

        return loss


def soft_cross_entropy(
    logits: Float[Tensor, "B classes"], targets: Float[Tensor, "B targets"], smoothing: float = 0.0
) -> Loss:
    """The cross-entropy of these logits and its metrics.

    Errors: UserError when model and data have different numbers of classes.
    """
    classes = targets.shape[1]
    if logits.shape[1] != classes:
        raise UserError(f"the data have {classes} classes, the model {logits.shape[1]}: set model.classes={classes}")
    rows = logits.new_tensor(len(logits))
    total = F.cross_entropy(logits, targets.float(), reduction="sum", label_smoothing=smoothing)
    truth = targets.argmax(1, keepdim=True)
    metrics = {"accuracy": Term((logits.argmax(1, keepdim=True) == truth).float().sum(), rows)}
    if classes > FEW:
        metrics["top5"] = Term((logits.topk(FEW).indices == truth).float().sum(), rows)
    return Loss({"ce": Term(total, rows)}, metrics)
