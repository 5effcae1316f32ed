"""What models learned from before BERT: both directions at once, and classes beside the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import LabelledTextBatch, TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term, with_classes
from onefold.objectives.classification import soft_cross_entropy
from onefold.objectives.language import token_loss


class BothDirections(Config):
    """ELMo's objective (arXiv 1802.05365, section 3.1): the token that follows from all before it, and the one that
    precedes from all behind it; the mean negative log-likelihoods of both are added up.

    `ce` is that of the forward model, which is what bits per byte are counted from.
    """

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats per token, both ways"
    kind: Literal["both_directions"] = "both_directions"

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltBothDirections":
        return BuiltBothDirections()


class BuiltBothDirections:
    """Called as any objective, and tells what its two terms count before the model runs."""

    def __call__(self, model: nn.Module, batch: TokenBatch, step: int) -> Loss:
        if not hasattr(model, "directions"):
            raise UserError("objective both_directions needs a model that reads both ways apart: model.kind=bilm")
        forwards, backwards = model.directions(model.features(*batch.inputs()))
        ahead, behind = token_loss(model, forwards, batch), token_loss(model, backwards, reversed_targets(batch))
        return Loss({"ce": ahead.terms["ce"], "backward": behind.terms["ce"]})

    def counts(self, batch: TokenBatch) -> dict[str, Tensor]:
        return {"ce": batch.weights.sum(), "backward": reversed_targets(batch).weights.sum()}


def reversed_targets(batch: TokenBatch) -> TokenBatch:
    """The same tokens, each asked what stood before it; the first one of a text is asked nothing."""
    targets, weights = batch.tokens.roll(1, 1), batch.weights.roll(1, 1)
    inside = torch.ones_like(batch.tokens, dtype=torch.bool)
    inside[:, 0] = False
    if batch.segments is not None:
        inside &= batch.segments == batch.segments.roll(1, 1)
    return replace(batch, targets=targets, weights=weights * inside)


class RegularizedNextToken(Config):
    """AWD-LSTM's objective (arXiv 1708.02182, section 4.6): next tokens, and activations that stay small and steady.

    The mean negative log-likelihood + `ar` · the mean square of what the last layer says, after dropout (α) + `tar` ·
    that of its difference from the token before, without dropout (β). Both are of tokens that are asked, differences
    within a text. Evaluations tell the likelihood alone.
    """

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats per token"
    kind: Literal["regularized_next_token"] = "regularized_next_token"
    ar: float = Field(default=2.0, ge=0)
    tar: float = Field(default=1.0, ge=0)

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltRegularized":
        return BuiltRegularized(self.ar, self.tar)


@dataclass(frozen=True)
class BuiltRegularized:
    """Called as any objective, and tells what its terms count before the model runs."""

    ar: float
    tar: float

    def __call__(self, model: nn.Module, batch: TokenBatch, step: int) -> Loss:
        if not hasattr(model, "activations"):
            raise UserError("objective regularized_next_token needs a model of LSTMs: model.kind=recurrent")
        if not model.training:
            return token_loss(model, model.features(*batch.inputs()), batch)
        features, said = model.activations(*batch.inputs())
        asked, follows = steady(batch)
        large = features.float().square().mean(-1)
        moved = (said[:, 1:] - said[:, :-1]).float().square().mean(-1)
        terms = {
            "ar": Term((large * asked).sum(), asked.sum(), self.ar),
            "tar": Term((moved * follows).sum(), follows.sum(), self.tar),
        }
        return Loss(token_loss(model, features, batch).terms | terms)

    def counts(self, batch: TokenBatch) -> dict[str, Tensor]:
        asked, follows = steady(batch)
        return {"ce": batch.weights.sum(), "ar": asked.sum(), "tar": follows.sum()}


def steady(batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B U"]]:
    """1 for each token that is asked; 1 for each, without the first column, that follows another of its text."""
    asked = batch.weights > 0
    follows = asked[:, 1:]
    if batch.segments is not None:
        follows = follows & (batch.segments[:, 1:] == batch.segments[:, :-1])
    return asked.float(), follows.float()


class ClassificationAndNext(Config):
    """How GPT is fine-tuned (Radford et al. 2018, section 3.2): classes of texts, and their tokens as before, which
    keeps what the model knew.

    The mean cross-entropy of the rows + `language` · that of the next tokens; metrics as of `Classification`.
    """

    reads: ClassVar = LabelledTextBatch
    task: ClassVar = "sequence"
    loss_unit: ClassVar = "nats"
    kind: Literal["classification_and_next"] = "classification_and_next"
    language: float = Field(default=0.5, ge=0)

    def going_on(self, start: Config, classes: int) -> Config:
        """See onefold.objectives.base.body_of."""
        return with_classes(start, classes)

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltClassificationAndNext":
        return BuiltClassificationAndNext(self)


class BuiltClassificationAndNext:
    """Called as any objective, and tells what its two terms count before the model runs."""

    def __init__(self, config: ClassificationAndNext):
        self.language = config.language

    def __call__(self, model: nn.Module, batch: LabelledTextBatch, step: int) -> Loss:
        features = model.features(*batch.inputs())
        classes = soft_cross_entropy(model.classify(features, batch.segments).float(), batch.targets)
        following = token_loss(model, features[:, :-1], next_tokens(batch)).terms["ce"]
        terms = {**classes.terms, "language": replace(following, weight=self.language)}
        return Loss(terms, classes.metrics)

    def counts(self, batch: LabelledTextBatch) -> dict[str, Tensor]:
        weights = next_tokens(batch).weights
        return {"ce": weights.new_tensor(batch.rows), "language": weights.sum()}


def next_tokens(batch: LabelledTextBatch) -> TokenBatch:
    """Each token of the texts but the last is asked what follows: [B, T - 1]."""
    real = torch.ones_like(batch.tokens) if batch.segments is None else batch.segments == 0
    return TokenBatch(tokens=batch.tokens[:, :-1], targets=batch.tokens[:, 1:], weights=real[:, 1:].float())
