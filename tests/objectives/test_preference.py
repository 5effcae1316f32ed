"""Losses on preferences against the authors' formulas and TRL, and log-probabilities against plain ones."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from onefold.core import dist
from onefold.core.batch import PreferenceBatch
from onefold.core.errors import UserError
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.objectives import cross_entropy
from onefold.objectives.log_probs import answer_log_probs, linear_log_probs
from onefold.objectives.preference import (
    DPO,
    IPO,
    KTO,
    ORPO,
    Preference,
    SimPO,
    dpo,
    ipo,
    kto,
    log1mexp,
    odds_ratio,
    simpo,
)
from onefold.objectives.reward import Reward, bradley_terry

ROWS, VOCAB = 6, 40


def decoder(**changes):
    block = BlockConfig(mixer=AttentionConfig(heads=2), ffn=MLPConfig(width=24))
    torch.manual_seed(0)
    return DecoderConfig(vocab=VOCAB, width=16, depth=2, context=16, block=block, **changes).build()


def batch(rows: int = ROWS) -> PreferenceBatch:
    """Prompts of 3 tokens and answers of 1 to 8, padded."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCAB, (rows, 2, 12), generator=generator)
    counts = torch.randint(1, 9, (rows, 2, 1), generator=generator)
    inside = torch.arange(8).expand(rows, 2, 8)
    weights = (inside < counts).float()
    return PreferenceBatch(
        tokens=tokens,
        lengths=3 + counts[..., 0],
        places=(inside + 2) * weights.long(),
        targets=tokens[..., 3:11] * weights.long(),
        weights=weights,
        liked=torch.arange(rows).remainder(2).float(),
        margins=torch.linspace(0, 1, rows),
        reference=-torch.rand(rows, 2, generator=generator) * 20,
    )


def plain(model, rows: PreferenceBatch) -> torch.Tensor:
    """Log-probabilities of answers from all logits: Float[B, 2]."""
    tokens = rows.tokens.flatten(0, 1)
    found = model(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    real = torch.arange(1, 12) < rows.lengths.flatten()[:, None]
    real[:, :2] = False  # the prompt
    return (found * real).sum(1).view(-1, 2)


@pytest.mark.parametrize("learns", ["all", "all but the head", "nothing"])
@pytest.mark.parametrize("bias", [False, True])
def test_log_probabilities_are_those_of_all_logits(monkeypatch, learns, bias):
    """And their gradients, in several chunks, whether or not the head learns."""
    monkeypatch.setattr(cross_entropy, "FEWEST", 1)
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 3 * VOCAB)
    model, rows = decoder(tied=False, head_bias=bias), batch()
    model.unembed.requires_grad_(learns == "all")
    if learns == "nothing":
        model.requires_grad_(False)
    pull = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(2))
    expected, found = plain(model, rows), answer_log_probs(model, *rows.sides()).view(-1, 2)
    torch.testing.assert_close(found, expected)
    if learns == "nothing":
        assert not found.requires_grad
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), trained), torch.autograd.grad((expected * pull).sum(), trained)
    )


@pytest.mark.parametrize("kind", ["decoder", "recurrent"])
def test_gradients_in_mixed_precision_are_those_in_full(kind):
    """A backward pass runs outside of autocast, and has to compute the very logits of the forward pass."""
    torch.manual_seed(0)
    config = RecurrentConfig(vocab=VOCAB, width=16, hidden=16, depth=1)
    model, rows = decoder(head_bias=True) if kind == "decoder" else config.build(), batch()
    found = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            said = answer_log_probs(model, *rows.sides()).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(said, list(model.parameters()))]))
    assert F.cosine_similarity(*found, dim=0) > 0.999
    assert 0.98 < found[1].norm() / found[0].norm() < 1.02


def test_the_backward_pass_computes_the_logits_of_the_forward_pass():
    """Rounded alike, so that what a row pulls at all its logits together is nothing, however sharp they are."""
    features = 30 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    head = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    bias = torch.zeros(16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        said = linear_log_probs(features, head, torch.zeros(64, dtype=torch.long), bias)
    (pull,) = torch.autograd.grad(said.sum(), bias)
    assert pull.sum().abs() < 1e-3


def test_no_logits_of_a_whole_batch_are_kept():
    """What stays between the passes grows with the width of features, not with the vocabulary."""
    features, head = torch.randn(512, 8, requires_grad=True), torch.randn(4096, 8)
    for wanted in (False, True):
        head.requires_grad_(wanted)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            linear_log_probs(features, head, torch.zeros(512, dtype=torch.long))
        assert sum(t.numel() for t in kept if t.data_ptr() != head.data_ptr()) <= 512 * (8 + 8)


def test_only_models_that_read_forwards_have_them():
    model = torch.nn.Linear(2, 2)
    model.config = None
    with pytest.raises(UserError, match="begin with a decoder"):
        answer_log_probs(model, *batch().sides())
    routed = decoder()
    routed.blocks[0].route = torch.nn.Identity()
    with pytest.raises(UserError, match="without routes"):
        answer_log_probs(routed, *batch().sides())


def test_at_the_reference():
    same = torch.zeros(3)
    torch.testing.assert_close(dpo(same, 0.1), torch.full((3,), math.log(2)))
    torch.testing.assert_close(dpo(same, 0.1, 0.3), torch.full((3,), math.log(2)))
    torch.testing.assert_close(ipo(same, 0.1), torch.full((3,), 1 / (4 * 0.1**2)))
    torch.testing.assert_close(kto(same, torch.tensor([0.0, 1, 0]), torch.tensor(0.0), 0.1), torch.full((3,), 0.5))


def test_losses_are_the_papers_formulas():
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = -5 * torch.rand(2, 50, generator=generator).double() - 0.01
    reference = -5 * torch.rand(2, 50, generator=generator).double()
    gap = (chosen - reference[0]) - (rejected - reference[1])
    σ = torch.sigmoid
    torch.testing.assert_close(dpo(gap, 0.3), -torch.log(σ(0.3 * gap)))
    conservative = -0.8 * torch.log(σ(0.3 * gap)) - 0.2 * torch.log(1 - σ(0.3 * gap))
    torch.testing.assert_close(dpo(gap, 0.3, 0.2), conservative)
    odds = [p.exp() / (1 - p.exp()) for p in (chosen, rejected)]
    torch.testing.assert_close(odds_ratio(chosen, rejected), -torch.log(σ(torch.log(odds[0] / odds[1]))))
    torch.testing.assert_close(simpo(chosen, rejected, 2.0, 0.7), -torch.log(σ(2 * chosen - 2 * rejected - 0.7)))
    liked, z0, ratio = (torch.arange(50) % 3 == 0).double(), torch.tensor(0.4).double(), chosen - reference[0]
    value = torch.where(liked > 0, 1.5 * σ(0.2 * (ratio - z0)), 0.8 * σ(0.2 * (z0 - ratio)))  # λ_y − v(x, y)
    torch.testing.assert_close(kto(ratio, liked, z0, 0.2, 1.5, 0.8), torch.where(liked > 0, 1.5, 0.8) - value)


def test_probabilities_near_one_and_zero_have_finite_odds():
    x = torch.tensor([-1e-9, -1e-4, -0.6, -0.8, -40.0, -1e4], requires_grad=True)
    found = log1mexp(x)
    torch.testing.assert_close(found[1:4], torch.log(1 - x[1:4].double().exp()).float())
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(found).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.slow
def test_trl_computes_the_same_odds_and_simpo():
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer").CPOTrainer
    said = -3 * torch.rand(8, 2) - 0.1
    lengths = torch.randint(1, 9, (8, 2)).float()
    mean = said / lengths
    here = SimpleNamespace(device="cpu")
    theirs = orpo.odds_ratio_loss(SimpleNamespace(beta=0.2, accelerator=here), mean[:, 0], mean[:, 1])
    losses, rewards = ORPO(weight=0.2)(said, lengths)
    torch.testing.assert_close(losses, -mean[:, 0] - theirs[0])
    torch.testing.assert_close(rewards, torch.stack(theirs[1:3], 1))
    settings = {"loss_type": "simpo", "simpo_gamma": 0.5, "beta": 2.0, "alpha": 0.0, "label_smoothing": 0.0}
    theirs = cpo.cpo_loss(SimpleNamespace(**settings, accelerator=here), mean[:, 0], mean[:, 1])
    losses, rewards = SimPO(beta=2.0, gamma=0.5)(said, lengths)
    torch.testing.assert_close(losses, theirs[0])
    torch.testing.assert_close(rewards, torch.stack(theirs[1:], 1))


@pytest.mark.parametrize("loss", [DPO(beta=0.3), IPO(), IPO(per_token=False), ORPO(), SimPO()], ids=repr)
def test_the_objective_is_its_loss_on_log_probabilities(loss):
    model, rows = decoder(), batch()
    found = Preference(loss=loss).build()(model, rows, 0)
    said, lengths = plain(model, rows), rows.weights.sum(-1)
    losses, rewards = loss(said, lengths, rows.reference)
    term = found.terms[loss.kind]
    assert term.count == ROWS
    torch.testing.assert_close(term.sum, losses.sum())
    expected = {
        "accuracy": (rewards[:, 0] > rewards[:, 1]).float().sum(),
        "margin": (rewards[:, 0] - rewards[:, 1]).sum(),
        "chosen": rewards[:, 0].sum(),
        "rejected": rewards[:, 1].sum(),
    }
    if loss.refers:
        expected["kl"] = (rows.reference - said).mean(1).sum()
    assert {name: m.sum.item() for name, m in found.metrics.items()} == pytest.approx(
        {name: m.item() for name, m in expected.items()}, rel=1e-4
    )
    torch.testing.assert_close(
        torch.autograd.grad(term.sum, list(model.parameters())),
        torch.autograd.grad(losses.sum(), list(model.parameters())),
        atol=1e-5,
        rtol=1e-4,
    )


def test_kto_measures_against_a_mean_that_carries_no_gradient():
    model, rows = decoder(), batch()
    whole, parts = KTO(beta=0.2).build(), KTO(beta=0.2).build().in_chunks(4)
    said = plain(model, rows)
    kl = (said[:, 1] - rows.reference[:, 1]).mean().clamp(min=0).detach()
    expected = kto(said[:, 0] - rows.reference[:, 0], rows.liked, kl, 0.2).sum()
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(expected, parameters)
    for objective in (whole, parts):
        loss = objective(model, rows, 0)
        torch.testing.assert_close(loss.terms["kto"].sum, expected)
        torch.testing.assert_close(loss.metrics["kl"].sum, kl * ROWS)
        found = torch.autograd.grad(loss.terms["kto"].sum, parameters)
        torch.testing.assert_close(found, slopes, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("counted", [True, False])
def test_kto_reads_as_many_chunks_as_other_processes_and_rows_once(monkeypatch, counted):
    """Also of rows that another process has, which are read for company alone."""
    model, rows, asked = decoder(), replace(batch(), counted=counted), []
    expected = KTO().build()(model, batch(), 0)
    monkeypatch.setattr(dist, "all_max", lambda value, device: max(value, 5))
    monkeypatch.setattr(dist, "all_sum", lambda t: summed.append(t) or t)
    summed: list[torch.Tensor] = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda tokens: asked.append(len(tokens)) or features(tokens))
    with torch.no_grad():
        loss = KTO().build().in_chunks(4)(model, rows, 0)
    assert asked == 2 * [3] * 5
    assert summed[0][1] == (ROWS if counted else 0)
    assert loss.terms["kto"].count == (ROWS if counted else 0)
    if counted:
        torch.testing.assert_close(loss.terms["kto"].sum, expected.terms["kto"].sum)
    else:
        assert loss.terms["kto"].sum == loss.metrics["chosen"].count == summed[0][0] == 0


def test_reward_models_learn_the_difference_of_scores():
    model, rows = decoder(classes=1), batch()
    loss = Reward(centre=0.1).build()(model, rows, 0)
    last = (rows.lengths - 1).flatten()
    features = model.features(rows.tokens.flatten(0, 1))
    scores = model.classifier.out(features[torch.arange(2 * ROWS), last]).view(-1, 2)
    ahead = scores[:, 0] - scores[:, 1]
    torch.testing.assert_close(loss.terms["bt"].sum, -F.logsigmoid(ahead - rows.margins).sum())
    torch.testing.assert_close(loss.terms["centre"].sum, scores.sum(1).square().sum())
    assert loss.terms["centre"].weight == 0.1
    torch.testing.assert_close(bradley_terry(scores), -torch.log(torch.sigmoid(ahead)))
    assert loss.metrics["accuracy"].sum == (ahead > 0).sum()


def test_a_reward_is_one_number():
    with pytest.raises(UserError, match="has 3 outputs"):
        Reward().build()(decoder(classes=3), batch(), 0)
