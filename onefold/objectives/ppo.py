"""Proximal policy optimisation of texts: a critic tells what each token's place is worth, KL to a reference is a cost.

    score at the end − penalty · KL at each token → GAE against the critic's values → clipped ratio and clipped values

The critic shares the policy's body: it is the model's classifier of one output, applied to every token by itself, so
that a policy may begin with a reward model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.batch import RolloutBatch
from onefold.core.config import Config
from onefold.objectives.base import Loss, Term, with_classes
from onefold.objectives.log_probs import token_log_probs
from onefold.objectives.policy import Share, clipped, evaluation, k3, policy_metrics, steady

GAIN, LARGEST = 0.1, 0.2  # of the controller of the penalty


def advantages_of(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    weights: Float[Tensor, "B T"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Float[Tensor, "B T"]:
    """Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ·V_{t+1} − V_t, over the tokens with weight, which stand together (generalised
    advantage estimation, arXiv 1506.02438, equation 16). Behind the last one nothing is worth anything."""
    found, after, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        after = weights[:, t] * (rewards[:, t] + gamma * ahead - values[:, t] + gamma * lam * after)
        ahead = weights[:, t] * values[:, t]
        found[:, t] = after
    return found


def whitened(values: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """With mean 0 and variance 1 over all tokens with weight."""
    count = weights.sum()
    apart = (values - (values * weights).sum() / count) * weights
    return apart * torch.rsqrt(apart.square().sum() / (count - 1).clamp(min=1) + 1e-8)


def value_loss(
    new: Float[Tensor, "B T"], old: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], clip: float
) -> Float[Tensor, "B T"]:
    """½·max((V − R)², (V clipped to V_old ± clip − R)²) of each token."""
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((new - returns).square(), (near - returns).square())


class PPO(Config):
    """Schulman et al. 2017 (arXiv 1707.06347) as language models use it (Ouyang et al. 2022, arXiv 2203.02155).

    Minimised are `policy`, −mean of the clipped ratio times the advantage, and value · `value`, the critic's squared
    error, both over tokens. With `target`, the price of KL follows it: β ← β·(1 + 0.1·clip(KL/target − 1, ±0.2)) after
    each phase (Ziegler et al. 2019, arXiv 1909.08593, section 2.2). Metrics as GRPO's, with `kl` in nats per answer and
    `penalty`, which is β.
    """

    reads: ClassVar = RolloutBatch
    loss_unit: ClassVar = "per token"
    kind: Literal["ppo"] = "ppo"
    clip: Share = 0.2
    kl: float = Field(default=0.05, ge=0)  # β at first; 0: no reference is needed
    estimate: Literal["k1", "k3"] = "k1"  # of the KL at a token: log π − log π_ref, or k3
    target: float | None = Field(default=None, gt=0)  # nats per answer; None: β stays
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whiten: bool = True  # advantages
    whiten_rewards: bool = False  # of whole answers, over a phase, before KL is paid (arXiv 2307.09288, section 3.2.3)
    value: float = Field(default=0.1, gt=0)
    value_clip: float = Field(default=0.2, gt=0)

    def going_on(self, start: Config, classes: int) -> Config:
        """See onefold.objectives.base.body_of."""
        return with_classes(start, 1)

    def build(self, frozen: Mapping[str, Any] | None = None) -> "BuiltPPO":
        return BuiltPPO(self)


@dataclass(frozen=True)
class BuiltPPO:
    """What PPO builds."""

    config: PPO

    @property
    def compares(self) -> bool:
        """Whether it wants to know a reference's log-probabilities."""
        return self.config.kl > 0

    def look(self, model: nn.Module, batch: RolloutBatch) -> RolloutBatch:
        """Some of what the policy has just written, with how likely that was, and what its critic expected."""
        features = model.features(*batch.inputs())
        return replace(batch, old=token_log_probs(model, features, batch), values=critic(model, features, batch))

    def judge(self, rollouts: RolloutBatch, memory: Mapping[str, Any]) -> tuple[RolloutBatch, Mapping[str, Any]]:
        """All that was written in a phase, with advantages and returns; and the penalty of the next phase."""
        config, weights = self.config, rollouts.weights
        penalty = memory.get("penalty", config.kl)
        last = weights * (weights.flip(1).cumsum(1).flip(1) == 1)
        rewards = rollouts.rewards[:, None]
        rewards = last * (whitened(rewards, torch.ones_like(rewards)) if config.whiten_rewards else rewards)
        if rollouts.reference is not None:
            apart = rollouts.old - rollouts.reference
            cost = apart if config.estimate == "k1" else k3(rollouts.old, rollouts.reference)
            rewards = rewards - penalty * cost * weights
            if config.target:
                off = (apart * weights).sum(1).mean().item() / config.target - 1
                memory = {**memory, "penalty": penalty * (1 + GAIN * max(-LARGEST, min(LARGEST, off)))}
        advantages = advantages_of(rewards, rollouts.values, weights, config.gamma, config.lam)
        judged = replace(
            rollouts,
            advantages=whitened(advantages, weights) if config.whiten else advantages,
            returns=advantages + rollouts.values,
            penalty=torch.full_like(rollouts.rewards, penalty),
        )
        return judged, memory

    def __call__(self, model: nn.Module, batch: RolloutBatch, step: int) -> Loss:
        config, weights = self.config, batch.weights
        with steady(model):
            features = model.features(*batch.inputs())
            # In this order: the backward pass begins with the head, whose weights FSDP gives back after the critic's.
            values = critic(model, features, batch)
            new = token_log_probs(model, features, batch)
        rows, tokens = new.new_tensor(len(new)), weights.sum()
        metrics = policy_metrics(new.detach(), batch)
        if batch.reference is not None:
            metrics["kl"] = Term((k3(new.detach(), batch.reference) * weights).sum(), rows)
        if batch.advantages is None:
            return evaluation(batch, metrics)
        ratio = torch.exp(new - batch.old)
        gained = clipped(ratio, batch.advantages, config.clip, config.clip)
        missed = value_loss(values, batch.values, batch.returns, config.value_clip)
        silent = (gained < ratio * batch.advantages).float()
        metrics["clipped"] = Term((silent * weights).sum(), tokens)
        metrics["penalty"] = Term(batch.penalty.sum(), rows)
        policy = Term(-(gained * weights).sum(), tokens)
        return Loss({"policy": policy, "value": Term((missed * weights).sum(), tokens, config.value)}, metrics)


def critic(model: nn.Module, features: Float[Tensor, "B T D"], batch: RolloutBatch) -> Float[Tensor, "B T"]:
    """What the model expects an answer to be worth after each token that it has read, where the batch has weights."""
    found = model.classify(features.flatten(0, 1)[:, None])[:, 0].float()
    return found.view(batch.weights.shape) * batch.weights
