"""PPO against sums written out token by token."""

import math
from dataclasses import replace

import pytest
import torch

from onefold.objectives.ppo import PPO, advantages_of, critic, whitened
from tests.infer.small_models import config, decoder
from tests.objectives.test_policy import batch as batch  # a fixture


@pytest.fixture
def model():
    return decoder(config("llama2", classes=1))


def brute_force(rewards, values, gamma, lam):
    """Σ_k (γλ)^k δ_{t+k} of one answer, each sum by itself."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_sums_of_discounted_surprises(batch, gamma, lam):
    rewards, values = batch.old, batch.reference
    found = advantages_of(rewards * batch.weights, values * batch.weights, batch.weights, gamma, lam)
    for row in range(len(rewards)):
        places = batch.weights[row].bool()
        expected = brute_force(rewards[row, places].tolist(), values[row, places].tolist(), gamma, lam)
        assert found[row, places].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert not found[row, ~places].any()


def test_a_phase_is_judged_as_the_formula_says(model, batch):
    """The score at the last token, KL at each; returns are advantages, before they are whitened, plus values."""
    built = PPO(kl=0.3, whiten=False).build()
    with torch.no_grad():
        looked = built.look(model, batch)
    judged, memory = built.judge(looked, {})
    assert memory == {}
    for row in range(len(batch.rewards)):
        places = batch.weights[row].bool()
        apart = (looked.old - batch.reference)[row, places].tolist()
        rewards = [-0.3 * a for a in apart]
        rewards[-1] += batch.rewards[row].item()
        expected = brute_force(rewards, looked.values[row, places].tolist(), 1.0, 0.95)
        assert judged.advantages[row, places].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(judged.returns, judged.advantages + looked.values)


def test_rewards_are_whitened_over_a_phase(model, batch):
    """Whatever scale they have, KL costs the same; metrics have them as they are."""
    with torch.no_grad():
        looked = PPO().build().look(model, batch)
    scaled = replace(looked, rewards=40 * looked.rewards - 3)
    whitening, plain = (PPO(kl=0.3, whiten_rewards=on).build() for on in (True, False))
    rewards = (batch.rewards - batch.rewards.mean()) / batch.rewards.std()
    expected, _ = plain.judge(replace(looked, rewards=rewards), {})
    for given in (looked, scaled):
        judged, memory = whitening.judge(given, {})
        torch.testing.assert_close(judged.returns, expected.returns, atol=1e-4, rtol=1e-4)
        assert (judged.rewards is given.rewards, memory) == (True, {})


def test_the_critic_reads_each_token_by_itself(model, batch):
    features = model.features(batch.tokens)
    found = critic(model, features, batch)
    for row, place in [(0, 2), (3, 4)]:
        alone = model.classify(features[row : row + 1, : place + 1])[0, 0]
        torch.testing.assert_close(found[row, place], alone)


def test_the_loss_is_that_of_the_paper(model, batch):
    built = PPO(value=0.5).build()
    with torch.no_grad():
        looked = built.look(model, batch)
    old = looked.old + 0.3 * torch.randn(looked.old.shape, generator=torch.Generator().manual_seed(3))
    judged, _ = built.judge(replace(looked, old=old * batch.weights, values=looked.values + 0.4 * batch.weights), {})
    loss = built(model, judged, 0)
    new, values = looked.old, looked.values
    policy, value, places = 0.0, 0.0, batch.weights.nonzero().tolist()
    for i, t in places:
        ratio, advantage = math.exp(new[i, t] - judged.old[i, t]), judged.advantages[i, t].item()
        policy -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        was, wanted, now = judged.values[i, t].item(), judged.returns[i, t].item(), values[i, t].item()
        near = was + min(max(now - was, -0.2), 0.2)
        value += 0.5 * max((now - wanted) ** 2, (near - wanted) ** 2)
    assert (loss.terms["policy"].sum / len(places)).item() == pytest.approx(policy / len(places), rel=1e-3, abs=1e-4)
    assert (loss.terms["value"].sum / len(places)).item() == pytest.approx(value / len(places), rel=1e-3)
    assert loss.terms["value"].weight == 0.5


def test_whitened_numbers_have_mean_0_and_variance_1(batch):
    found = whitened(batch.old, batch.weights)[batch.weights.bool()]
    assert found.mean().item() == pytest.approx(0, abs=1e-6)
    assert found.std().item() == pytest.approx(1, abs=1e-5)


def test_the_price_of_kl_follows_its_target(model, batch):
    """Up by a fiftieth at most where the policy is too far away, down where it is nearer than it may be."""
    with torch.no_grad():
        looked = PPO().build().look(model, batch)
    apart = ((looked.old - batch.reference) * batch.weights).sum(1).mean().item()
    sign = 1 if apart > 0 else -1
    looked = looked if sign > 0 else replace(looked, old=batch.reference, reference=looked.old)
    for target, factor in ((abs(apart) / 10, 1.02), (abs(apart) * 10, 0.98), (abs(apart) / 1.1, 1.01)):
        built = PPO(kl=0.2, target=target).build()
        judged, memory = built.judge(looked, {})
        assert memory["penalty"] == pytest.approx(0.2 * factor, rel=1e-4)
        assert judged.penalty.tolist() == pytest.approx([0.2] * 6)
        assert built.judge(looked, memory)[0].penalty.tolist() == pytest.approx([0.2 * factor] * 6, rel=1e-4)
