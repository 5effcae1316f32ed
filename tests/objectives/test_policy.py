"""Policy losses against sums over tokens written out, and what clips and KL do to gradients."""

import math
from dataclasses import replace

import pytest
import torch

from onefold.core.batch import RolloutBatch
from onefold.nn.own_losses import listening
from onefold.objectives.log_probs import token_log_probs
from onefold.objectives.policy import GRPO, group_advantages, k3
from onefold.objectives.ppo import PPO
from tests.infer.small_models import config, decoder

ROWS, WIDTH = 6, 10


@pytest.fixture
def model():
    return decoder(config("llama2"))


@pytest.fixture
def batch() -> RolloutBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(61, (ROWS, WIDTH + 1), generator=generator)
    lengths = torch.tensor([1, 2, 3, 5, 7, 4])[:, None]
    places = torch.arange(WIDTH)
    noise = torch.randn(3, ROWS, WIDTH, generator=generator)
    return RolloutBatch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=((places >= 2) & (places < 2 + lengths)).float(),
        rewards=torch.tensor([1.0, 0, 0, 2, 2, 5]),
        groups=torch.tensor([0, 0, 0, 1, 1, 1]),
        temperature=0.7,
        old=-4 + 0.3 * noise[0],
        reference=-4 + 0.3 * noise[1],
    )


def test_token_log_probs_are_those_of_the_distribution_sampled_from(model, batch):
    found = token_log_probs(model, model.features(batch.tokens), batch)
    expected = (model(batch.tokens).double() / 0.7).log_softmax(-1).gather(2, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(found, (expected * batch.weights).float(), atol=1e-5, rtol=1e-5)


def test_advantages_are_those_of_trl(batch):
    """As its GRPOTrainer computes them: grouped mean and standard deviation, the latter plus 1e-4."""
    grouped = batch.rewards.view(2, 3)
    expected = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(group_advantages(batch.rewards, batch.groups), expected)
    shuffled = torch.tensor([4, 0, 5, 1, 3, 2])
    found = group_advantages(batch.rewards[shuffled], batch.groups[shuffled])
    torch.testing.assert_close(found, expected[shuffled])
    assert group_advantages(torch.ones(2), torch.tensor([0, 1])).tolist() == [0, 0]


@pytest.mark.parametrize("router", ["top_k", "noisy_top_k"])
@pytest.mark.parametrize("objective", [GRPO(kl=0), PPO(kl=0)])
def test_a_mixture_is_kept_in_balance_by_what_is_not_random(batch, objective, router):
    experts = {
        "experts": 4,
        "expert": {"kind": "gated", "width": 8},
        "capacity": 0.3,
        "router": {"kind": router, "k": 2},
    }
    model = config("llama2", classes=1).but({"block.ffn": {"kind": "experts", **experts}}).build().train()
    nothing = torch.zeros_like(batch.weights)
    judged = replace(batch, advantages=nothing, values=nothing, returns=nothing, penalty=torch.zeros(ROWS))
    losses = []
    for _ in range(2):
        with listening(model) as told:
            losses.append(objective.build()(model, judged, 0).heard(told))
    first, again = losses
    own = {"top_k": {"balance"}, "noisy_top_k": {"importance", "load"}}[router]
    assert own <= {*first.terms}
    assert {"busiest", "idle"} <= {*first.metrics}
    assert first.metrics["dropped"].sum == 0
    assert all(torch.equal(first.terms[name].sum, again.terms[name].sum) for name in first.terms)
    sum(first.terms[name].sum for name in own).backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if n.endswith("router.weight"))
    assert model.training


@pytest.mark.parametrize("mean", ["answers", "tokens"])
def test_grpo_is_equation_3(model, batch, mean):
    objective = GRPO(kl=0.1, mean=mean).build()
    judged, _ = objective.judge(batch, {})
    loss = objective(model, judged, 0)
    new = token_log_probs(model, model.features(batch.tokens), batch).detach().double()
    rows, silent, tokens = [], 0, 0
    for row in range(ROWS):
        advantage, terms = group_advantages(batch.rewards, batch.groups)[row].item(), []
        for t in batch.weights[row].nonzero()[:, 0].tolist():
            ratio = math.exp(new[row, t] - batch.old[row, t])
            plain, cut = ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage
            apart = (batch.reference[row, t] - new[row, t]).item()
            terms.append(min(plain, cut) - 0.1 * (math.exp(apart) - apart - 1))
            silent += cut < plain
        tokens += len(terms)
        rows.append(sum(terms) / (len(terms) if mean == "answers" else 1))
    expected = -sum(rows) / (ROWS if mean == "answers" else tokens)
    found = sum(term.weight * term.sum / term.count for term in loss.terms.values())
    assert found.item() == pytest.approx(expected, rel=1e-4)
    metrics = {name: (term.sum / term.count).item() for name, term in loss.metrics.items()}
    assert metrics["clipped"] == pytest.approx(silent / tokens)
    assert metrics["length"] == pytest.approx(tokens / ROWS)
    assert metrics["reward"] == pytest.approx(10 / 6)


def test_the_penalty_is_an_unbiased_estimate():
    policy, reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(1)).log_softmax(1)
    exact = (policy.exp() * (policy - reference)).sum()
    estimates = k3(policy[None], reference[None])[0]
    assert (estimates >= 0).all()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)


def test_what_nobody_judged_is_measured(model, batch):
    loss = GRPO().build()(model, batch, 0)
    assert loss.terms["cost"].sum == -batch.rewards.sum()
    assert {"reward", "kl", "entropy", "length"} == set(loss.metrics)
