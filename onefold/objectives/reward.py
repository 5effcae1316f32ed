"""Reward models: a score for each answer, learned from which of two was preferred."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import PreferenceBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term, with_classes
from onefold.objectives.log_probs import reads_forwards
from onefold.objectives.preference import pair_metrics


class Reward(Config):
    """Bradley–Terry: the mean of −log σ(r_chosen − r_rejected − margin) over pairs, in nats.

    The margin is the data's, where they have one: by how much an answer is better (Llama 2, arXiv 2307.09288, section
    3.2.2). Metrics as of `Preference`, of the scores themselves. The model has one output: model.classes=1.
    """

    reads: ClassVar = PreferenceBatch
    task: ClassVar = "pairs"
    loss_unit: ClassVar = "nats per pair"
    kind: Literal["reward"] = "reward"
    centre: float = Field(default=0.0, ge=0)  # · (r_chosen + r_rejected)², which keeps scores near 0 (arXiv 2312.09244)

    def going_on(self, start: Config, classes: int) -> Config:
        """See onefold.objectives.base.body_of."""
        return with_classes(start, 1)

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, PreferenceBatch, int], Loss]:
        def loss(model: nn.Module, batch: PreferenceBatch, step: int) -> Loss:
            scores = scores_of(model, batch)
            rows = scores.new_tensor(len(scores))
            terms = {"bt": Term(bradley_terry(scores, batch.margins).sum(), rows)}
            if self.centre:
                terms["centre"] = Term(scores.sum(1).square().sum(), rows, self.centre)
            return Loss(terms, pair_metrics(scores.detach(), rows))

        return loss


def bradley_terry(scores: Float[Tensor, "B 2"], margins: Float[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
    """−log σ(r_chosen − r_rejected − margin) of each pair."""
    ahead = scores[:, 0] - scores[:, 1]
    return -F.logsigmoid(ahead if margins is None else ahead - margins)


def scores_of(model: nn.Module, batch: PreferenceBatch) -> Float[Tensor, "B 2"]:
    """The model's score of both answers of each row, which are read together."""
    if not hasattr(model, "classify"):
        raise UserError("a reward model reads texts and has one output: begin with a decoder, model.classes=1")
    tokens, lengths = batch.tokens.flatten(0, 1), batch.lengths.flatten()
    padding = (torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]).long()
    seen = (tokens,) if reads_forwards(model) else (tokens, None, padding)
    scores = model.classify(model.features(*seen), padding).float()
    if scores.shape[1] != 1:
        raise UserError(f"a reward is one number, and the model has {scores.shape[1]} outputs: set model.classes=1")
    return scores.view(-1, 2)
