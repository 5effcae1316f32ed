"""Learning from what people preferred, without a reward model: DPO and its family.

    model → log-probability of both answers, in one forward → a loss of a few lines → mean over pairs

Each loss is a function of the answers' log-probabilities and, for most, of those that a reference gave them. The
reference is asked once, before training (training/reference.py), and what it said comes with the batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onefold.core import dist
from onefold.core.batch import PreferenceBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term
from onefold.objectives.log_probs import answer_log_probs

Positive = Annotated[float, Field(gt=0)]
Pairs = Float[Tensor, "B 2"]  # of the preferred answer, and of the other one

# The losses, of each row. ratio: log π(y|x) − log π_ref(y|x); gap: that of the preferred answer minus the other's.


def dpo(gap: Float[Tensor, " B"], beta: float, smoothing: float = 0.0) -> Float[Tensor, " B"]:
    """−log σ(β·gap) (arXiv 2305.18290, equation 7); with `smoothing` ε, of labels of which a share ε is wrong: cDPO."""
    return -(1 - smoothing) * F.logsigmoid(beta * gap) - smoothing * F.logsigmoid(-beta * gap)


def ipo(gap: Float[Tensor, " B"], beta: float) -> Float[Tensor, " B"]:
    """(gap − 1/(2β))² (arXiv 2310.12036, equation 17, where β is τ): the gap has a target, not just a direction."""
    return (gap - 1 / (2 * beta)).square()


def kto(
    ratio: Float[Tensor, " B"],
    liked: Float[Tensor, " B"],
    kl: Float[Tensor, ""],
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Float[Tensor, " B"]:
    """λ·(1 − σ(±β·(ratio − kl))), + where an answer is liked (arXiv 2402.01306, section 4.2). No pairs are needed."""
    sign, weight = 2 * liked - 1, liked * desirable + (1 - liked) * undesirable
    return weight * torch.sigmoid(-sign * beta * (ratio - kl))


def odds_ratio(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """−log σ(log odds(chosen) − log odds(rejected)), from log-probabilities per token (arXiv 2403.07691, eq. 7)."""
    return -F.logsigmoid(chosen - rejected - log1mexp(chosen) + log1mexp(rejected))


def simpo(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], beta: float, gamma: float) -> Float[Tensor, " B"]:
    """−log σ(β·(chosen − rejected) − γ), from log-probabilities per token (arXiv 2405.14734, equation 6)."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def log1mexp(x: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log(1 − eˣ) for x < 0, exact near 0 and far from it (Mächler 2012). Probabilities of 1 count as just below."""
    x = x.clamp(max=-1e-6)
    near = x > -math.log(2)
    low, high = torch.where(near, -1.0, x), torch.where(near, x, -1.0)  # keeps the other branch's gradient finite
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))


# What each loss is called with: log-probabilities of both answers (sums over their tokens, nats), how many tokens these
# have, and what the reference gave them. It returns the loss of each row and the implicit rewards that metrics show.


class DPO(Config):
    """Direct preference optimisation. Log-probabilities are sums over an answer's tokens."""

    kind: Literal["dpo"] = "dpo"
    refers: ClassVar = True
    beta: Positive = 0.1
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # share of labels taken to be wrong: above 0 it is cDPO

    def __call__(self, said: Pairs, lengths: Pairs, reference: Pairs) -> tuple[Float[Tensor, " B"], Pairs]:
        ratio = said - reference
        return dpo(ratio[:, 0] - ratio[:, 1], self.beta, self.smoothing), self.beta * ratio


class IPO(Config):
    """Identity preference optimisation. Log-probabilities are means over an answer's tokens, as in the paper's
    experiments; with per_token false they are sums, as its equations have them."""

    kind: Literal["ipo"] = "ipo"
    refers: ClassVar = True
    beta: Positive = 0.1
    per_token: bool = True

    def __call__(self, said: Pairs, lengths: Pairs, reference: Pairs) -> tuple[Float[Tensor, " B"], Pairs]:
        ratio = (said - reference) / lengths if self.per_token else said - reference
        return ipo(ratio[:, 0] - ratio[:, 1], self.beta), self.beta * ratio


class ORPO(Config):
    """Odds ratio preference optimisation: −log-likelihood of the preferred answer + weight · odds ratio. No reference.

    Log-probabilities are means over an answer's tokens.
    """

    kind: Literal["orpo"] = "orpo"
    refers: ClassVar = False
    weight: Positive = 0.1  # λ in the paper

    def __call__(
        self, said: Pairs, lengths: Pairs, reference: Pairs | None = None
    ) -> tuple[Float[Tensor, " B"], Pairs]:
        mean = said / lengths
        return self.weight * odds_ratio(mean[:, 0], mean[:, 1]) - mean[:, 0], self.weight * mean


class SimPO(Config):
    """Simple preference optimisation. Log-probabilities are means over an answer's tokens. No reference."""

    kind: Literal["simpo"] = "simpo"
    refers: ClassVar = False
    beta: Positive = 2.0
    gamma: float = Field(default=1.0, ge=0)  # by how much the preferred answer should be ahead, times β

    def __call__(
        self, said: Pairs, lengths: Pairs, reference: Pairs | None = None
    ) -> tuple[Float[Tensor, " B"], Pairs]:
        mean = said / lengths
        return simpo(mean[:, 0], mean[:, 1], self.beta, self.gamma), self.beta * mean


class Preference(Config):
    """The mean loss of pairs of answers.

    Metrics, of the rewards that a loss implies: `accuracy`, the share of pairs whose preferred answer has the higher
    one; `margin`, by how much; `chosen`, `rejected`; and with a reference `kl`, the mean of log π_ref − log π over all
    answers in nats: an estimate of KL(π_ref ‖ π) where the answers were the reference's own.
    """

    reads: ClassVar = PreferenceBatch
    task: ClassVar = "pairs"
    loss_unit: ClassVar = "per pair"
    kind: Literal["preference"] = "preference"
    loss: Annotated[DPO | IPO | ORPO | SimPO, Slot()] = DPO()

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, PreferenceBatch, int], Loss]:
        return Referring(self.loss) if self.loss.refers else PairLoss(self.loss)


@dataclass(frozen=True)
class PairLoss:
    """What Preference builds. Both answers go through the model together."""

    loss: DPO | IPO | ORPO | SimPO

    def __call__(self, model: nn.Module, batch: PreferenceBatch, step: int) -> Loss:
        said = said_of_pairs(model, batch)
        lengths = batch.weights.sum(-1).clamp(min=1)
        rows = said.new_tensor(len(said))
        losses, rewards = self.loss(said, lengths, reference_of(batch) if self.loss.refers else None)
        metrics = pair_metrics(rewards.detach(), rows)
        if self.loss.refers:
            metrics["kl"] = Term((reference_of(batch) - said.detach()).mean(1).sum(), rows)
        return Loss({self.loss.kind: Term(losses.sum(), rows)}, metrics)


@dataclass(frozen=True)
class Referring(PairLoss):
    """One that has to know what a reference says of each row, which `refer` asks it; the data keep the answers."""

    def refer(self, model: nn.Module, batch: PreferenceBatch) -> Pairs:
        return said_of_pairs(model, batch)


class KTO(Config):
    """Kahneman–Tversky optimisation: answers that were liked or not, each by itself.

    kl = max(0, mean of `ratio` over answers to other rows' prompts), of the whole batch, is what ratios are measured
    against; no gradient goes through it. Log-probabilities are sums over an answer's tokens. Metrics: `kl`, and the
    implicit rewards `chosen` (of liked answers) and `rejected`, each averaged over its own rows.
    """

    reads: ClassVar = PreferenceBatch
    task: ClassVar = "labels"
    loss_unit: ClassVar = "per answer"
    kind: Literal["kto"] = "kto"
    beta: Positive = 0.1
    desirable: Positive = 1.0  # λ_D, λ_U: weights of liked and of other answers. The paper advises λ_D·n_D / (λ_U·n_U)
    undesirable: Positive = 1.0  # between 1 and 4/3, n being their numbers

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltKTO":
        return BuiltKTO(self)


@dataclass(frozen=True)
class BuiltKTO:
    """What KTO builds. It compares rows with a mean over the batch, so that it takes whole batches and splits them
    itself: see onefold.objectives.contrastive.Contrast."""

    config: KTO
    chunk: int | None = None

    def in_chunks(self, rows: int) -> "BuiltKTO":
        return replace(self, chunk=rows)

    def refer(self, model: nn.Module, batch: PreferenceBatch) -> Pairs:
        return said_of_pairs(model, batch)

    def __call__(self, model: nn.Module, batch: PreferenceBatch, step: int) -> Loss:
        if batch.liked is None:
            raise UserError("objective kto needs answers with labels: set data.task=labels")
        config, liked, reference = self.config, batch.liked, reference_of(batch)
        parts, rows = [batch], batch.rows if batch.counted else 0
        if self.chunk is not None:  # as many for every process: sharded weights are gathered by all of them together
            parts = batch.split(self.chunk)
            parts += parts[-1:] * (dist.all_max(len(parts), batch.tokens.device) - len(parts))
        liked, reference = liked[:rows], reference[:rows]
        with torch.no_grad():
            moved = torch.cat([answer_log_probs(model, *part.side(1)) for part in parts])[:rows] - reference[:, 1]
            total = torch.stack((moved.sum(), moved.new_tensor(len(moved))))
            total = total if total.is_meta else dist.all_sum(total)
            kl = (total[0] / total[1]).clamp(min=0)
        again = len(parts) > 1 and torch.is_grad_enabled()
        read = [(model, *part.side(0)) for part in parts]
        said = [checkpoint(answer_log_probs, *r, use_reentrant=False) if again else answer_log_probs(*r) for r in read]
        ratio = torch.cat(said)[:rows] - reference[:, 0]
        losses = kto(ratio, liked, kl, config.beta, config.desirable, config.undesirable)
        rewards, count = config.beta * ratio.detach(), ratio.new_tensor(len(ratio))
        metrics = {
            "kl": Term(kl * count, count),
            "chosen": Term((rewards * liked).sum(), liked.sum()),
            "rejected": Term((rewards * (1 - liked)).sum(), (1 - liked).sum()),
        }
        return Loss({"kto": Term(losses.sum(), count)}, metrics)


def said_of_pairs(model: nn.Module, batch: PreferenceBatch) -> Pairs:
    """The log-probability that `model` gives to both answers of each row, read together."""
    return answer_log_probs(model, *batch.sides()).view(-1, 2)


def reference_of(batch: PreferenceBatch) -> Pairs:
    if batch.reference is None:
        raise UserError("this objective compares with a reference, and nobody has asked one about these rows")
    return batch.reference


def pair_metrics(rewards: Pairs, rows: Float[Tensor, ""]) -> dict[str, Term]:
    """`accuracy` (of equal rewards, one half), `margin`, `chosen` and `rejected`."""
    margin = rewards[:, 0] - rewards[:, 1]
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    named = {"accuracy": right, "margin": margin, "chosen": rewards[:, 0], "rejected": rewards[:, 1]}
    return {name: Term(values.sum(), rows) for name, values in named.items()}
