"""Learning from what a policy wrote itself and what that was worth: policy gradients with a clipped ratio.

    rewards → advantages, once for all that was written → ratio to the policy that wrote it, clipped → mean

Whoever writes the answers (infer/rollouts) asks the objective to judge them all together; the batches of
training have the outcome. Batches that were not judged are evaluations, whose loss is the reward with a minus.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import RolloutBatch
from onefold.core.config import Config
from onefold.objectives.base import Loss, Term
from onefold.objectives.log_probs import token_log_probs

Share = Annotated[float, Field(gt=0, lt=1)]
EPSILON = 1e-4  # beside a group's standard deviation


def group_advantages(
    rewards: Float[Tensor, " N"], groups: Int[Tensor, " N"], scale: bool = True
) -> Float[Tensor, " N"]:
    """(r − mean) / std over the answers to the same prompt (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    scale: False leaves the standard deviation out, which favours prompts that are nearly solved or nearly hopeless
    (arXiv 2503.20783). A group of one has nothing to be compared with: 0.
    """
    _, which, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = rewards.new_zeros(len(counts))
    apart = rewards - (sums.index_add(0, which, rewards) / counts)[which]
    if not scale:
        return apart
    spread = (sums.index_add(0, which, apart.square()) / (counts - 1).clamp(min=1)).sqrt()
    return apart / (spread[which] + EPSILON)


def clipped(
    ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], below: float, above: float
) -> Float[Tensor, "B T"]:
    """min(ratio · A, clip(ratio, 1 − below, 1 + above) · A) of each token (PPO, arXiv 1707.06347, equation 7)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - below, 1 + above) * advantages)


def k3(new: Float[Tensor, "B T"], reference: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """r − 1 − log r with r = π_ref / π, an estimate of KL(π ‖ π_ref) at each token that is never negative (2402.03300,
    equation 4; Schulman 2020, "Approximating KL divergence")."""
    apart = reference - new
    return torch.expm1(apart) - apart


class GRPO(Config):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, equation 3): answers to one prompt are
    compared with each other, so that no critic is needed.

    Minimised are `policy`, −mean of the clipped ratio times the advantage, and kl · `kl`, the mean of `k3` in nats per
    token. Means are over the tokens of an answer and then over answers, or over all tokens (arXiv 2503.14476). Metrics:
    `reward`, `length` in tokens, `entropy`, the mean of −log π over the tokens written, and `clipped`, the share of
    tokens that the clip silences.
    """

    reads: ClassVar = RolloutBatch
    loss_unit: ClassVar = "per token"
    kind: Literal["grpo"] = "grpo"
    clip: Share = 0.2
    clip_above: float | None = Field(default=None, gt=0)  # where it differs from `clip`, which is then that below
    kl: float = Field(default=0.04, ge=0)  # 0: no reference is needed
    scale: bool = True  # advantages divided by the group's standard deviation
    mean: Literal["answers", "tokens"] = "answers"

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltGRPO":
        return BuiltGRPO(self)


@dataclass(frozen=True)
class BuiltGRPO:
    """What GRPO builds."""

    config: GRPO

    @property
    def compares(self) -> bool:
        """Whether it wants to know a reference's log-probabilities."""
        return self.config.kl > 0

    def look(self, model: nn.Module, batch: RolloutBatch) -> RolloutBatch:
        """Some of what the policy has just written, with how likely that was."""
        return replace(batch, old=token_log_probs(model, model.features(*batch.inputs()), batch))

    def judge(self, rollouts: RolloutBatch, memory: Mapping[str, Any]) -> tuple[RolloutBatch, Mapping[str, Any]]:
        """All that was written in a phase, with its advantages, and what to remember in the next one."""
        advantages = group_advantages(rollouts.rewards, rollouts.groups, self.config.scale)
        return replace(rollouts, advantages=advantages[:, None] * rollouts.weights), memory

    def __call__(self, model: nn.Module, batch: RolloutBatch, step: int) -> Loss:
        config, weights = self.config, batch.weights
        with steady(model):
            new = token_log_probs(model, model.features(*batch.inputs()), batch)
        rows, tokens = new.new_tensor(len(new)), weights.sum()
        shares, count = (weights, tokens)
        if config.mean == "answers":
            shares, count = weights / weights.sum(1, keepdim=True).clamp(min=1), rows
        metrics = policy_metrics(new.detach(), batch)
        kl = None if batch.reference is None else Term((k3(new, batch.reference) * shares).sum(), count, config.kl)
        if batch.advantages is None:
            return evaluation(batch, metrics if kl is None else metrics | {"kl": kl})
        above = config.clip if config.clip_above is None else config.clip_above
        ratio = torch.exp(new - batch.old)
        gained = clipped(ratio, batch.advantages, config.clip, above)
        silent = (gained < ratio * batch.advantages).float()
        terms = {"policy": Term(-(gained * shares).sum(), count)} | ({} if kl is None else {"kl": kl})
        return Loss(terms, metrics | {"clipped": Term((silent * weights).sum(), tokens)})


class Imitation(Config):
    """The mean negative log-likelihood of the tokens that were written, in nats: learning from answers as they are.

    Of the best answers (data.best) it is fine-tuning by rejection sampling (Llama 2, arXiv 2307.09288, section 3.2.3).
    Metrics are GRPO's `reward`, `length` and `entropy`, of these answers.
    """

    reads: ClassVar = RolloutBatch
    loss_unit: ClassVar = "nats per token"
    kind: Literal["imitation"] = "imitation"

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltImitation":
        return BuiltImitation()


class BuiltImitation:
    """What Imitation builds."""

    def look(self, model: nn.Module, batch: RolloutBatch) -> RolloutBatch:
        """As it is: who wrote it does not matter."""
        return batch

    def judge(self, rollouts: RolloutBatch, memory: Mapping[str, Any]) -> tuple[RolloutBatch, Mapping[str, Any]]:
        """All answers are as good."""
        return replace(rollouts, advantages=rollouts.weights), memory

    def __call__(self, model: nn.Module, batch: RolloutBatch, step: int) -> Loss:
        new = token_log_probs(model, model.features(*batch.inputs()), batch)
        metrics = policy_metrics(new.detach(), batch)
        if batch.advantages is None:
            return evaluation(batch, metrics)
        return Loss({"ce": Term(-new.sum(), batch.weights.sum())}, metrics)


def policy_metrics(new: Float[Tensor, "B T"], batch: RolloutBatch) -> dict[str, Term]:
    """`reward`, `length` and `entropy` of what was written."""
    rows, tokens = new.new_tensor(len(new)), batch.weights.sum()
    return {
        "reward": Term(batch.rewards.sum(), rows),
        "length": Term(tokens, rows),
        "entropy": Term(-(new * batch.weights).sum(), tokens),
    }


def evaluation(batch: RolloutBatch, metrics: Mapping[str, Term]) -> Loss:
    """Of answers that nothing is learned from: the better, the lower."""
    return Loss({"cost": Term(-batch.rewards.sum(), batch.rewards.new_tensor(batch.rows))}, dict(metrics))


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """Without dropout, or whatever else is random: else the ratio to the policy that wrote the text would be noise."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
