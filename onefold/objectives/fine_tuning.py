"""What encoders are fine-tuned for beside classes of whole texts: tags of words, answers in texts, numbers."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.batch import UNASKED, LabelledTextBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term


class TokenClassification(Config):
    """Mean cross-entropy of each token that is asked, in nats (arXiv 1810.04805, section 5.3). Metric: `accuracy`."""

    reads: ClassVar = LabelledTextBatch
    task: ClassVar = "token"
    loss_unit: ClassVar = "nats per token"
    kind: Literal["token_classification"] = "token_classification"

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, LabelledTextBatch, int], Loss]:
        def loss(model: nn.Module, batch: LabelledTextBatch, step: int) -> Loss:
            logits = model.head(model.features(*batch.inputs())).float()
            _must_be(batch.targets, batch.tokens.shape, "token")
            return token_cross_entropy(logits, batch.targets)

        return loss


def token_cross_entropy(logits: Float[Tensor, "B T C"], targets: Int[Tensor, "B T"]) -> Loss:
    """Of the tokens whose target is not UNASKED."""
    asked = targets != UNASKED
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=UNASKED, reduction="sum")
    right = (logits.argmax(-1) == targets) & asked
    count = asked.sum().float()
    return Loss({"ce": Term(total, count)}, {"accuracy": Term(right.sum().float(), count)})


class SpanSelection(Config):
    """Where an answer begins and where it ends, each chosen among all tokens of a row: the mean of the two
    cross-entropies, in nats (arXiv 1810.04805, section 4.2).

    Metric: `exact`, the share of the rows of which both are right.
    """

    reads: ClassVar = LabelledTextBatch
    task: ClassVar = "span"
    loss_unit: ClassVar = "nats per answer"
    kind: Literal["span_selection"] = "span_selection"

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, LabelledTextBatch, int], Loss]:
        def loss(model: nn.Module, batch: LabelledTextBatch, step: int) -> Loss:
            logits = model.head(model.features(*batch.inputs())).float()
            _must_be(batch.targets, (batch.rows, 2), "span")
            if batch.segments is not None:
                logits = logits.masked_fill(batch.segments[..., None] > 0, -1e30)  # padding answers nothing
            return span_cross_entropy(logits, batch.targets)

        return loss


def span_cross_entropy(logits: Float[Tensor, "B T 2"], targets: Int[Tensor, "B 2"]) -> Loss:
    """Of first and last tokens."""
    ends = logits.transpose(1, 2).reshape(-1, logits.shape[1])  # a row of T for each of the B · 2
    total = F.cross_entropy(ends, targets.flatten(), reduction="sum") / 2
    right = (logits.argmax(1) == targets).all(1)
    rows = logits.new_tensor(len(targets))
    return Loss({"ce": Term(total, rows)}, {"exact": Term(right.sum().float(), rows)})


class Regression(Config):
    """Mean squared error of a model's one output.

    Data give numbers in standard deviations from their mean, so the loss is about 1 for a model that knows nothing, and
    1 − loss about the share of the variance that it explains (R²).
    """

    reads: ClassVar = LabelledTextBatch
    task: ClassVar = "regression"
    loss_unit: ClassVar = "squared error"
    kind: Literal["regression"] = "regression"

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, LabelledTextBatch, int], Loss]:
        def loss(model: nn.Module, batch: LabelledTextBatch, step: int) -> Loss:
            said = model.head(model.features(*batch.inputs())).float()
            _must_be(batch.targets, (batch.rows, 1), "regression")
            if said.shape != batch.targets.shape:
                raise UserError(f"a number takes a model with one output, not {list(said.shape)[1:]}: model.classes=1")
            total = F.mse_loss(said, batch.targets.float(), reduction="sum")
            return Loss({"mse": Term(total, total.new_tensor(len(said)))})

        return loss


def _must_be(targets: Tensor, shape: tuple[int, ...], task: str) -> None:
    if tuple(targets.shape) != tuple(shape):
        raise UserError(f"this objective needs data for its task: set data.task={task}")
