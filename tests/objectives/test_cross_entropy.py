"""The chunked loss is the plain one, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import TokenBatch
from onefold.models import families
from onefold.objectives import cross_entropy
from onefold.objectives.cross_entropy import linear_cross_entropy
from onefold.objectives.language import NextToken


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.3)])
def test_equals_plain_cross_entropy_with_gradients(monkeypatch, z_loss, smoothing, biased):
    monkeypatch.setattr(cross_entropy, "FEWEST", 1)
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 50)  # several chunks, the last one short
    torch.manual_seed(0)
    features, head = torch.randn(3, 5, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    bias = torch.randn(13, requires_grad=True) if biased else None
    leaves = (features, head, bias) if biased else (features, head)
    targets, weights = torch.randint(0, 13, (3, 5)), torch.rand(3, 5)
    nll, z = cross_entropy.linear_cross_entropy(features, head, targets, weights, z_loss, bias, smoothing)
    (nll * 0.3).backward()
    got = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None

    logits = features @ head.T + (bias if biased else 0)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing)
    plain = (plain * weights.flatten()).sum()
    plain_z = z_loss * (logits.logsumexp(-1).square() * weights).sum()
    ((plain + plain_z) * 0.3).backward()
    torch.testing.assert_close(nll, plain)
    torch.testing.assert_close(z, plain_z.detach())
    torch.testing.assert_close(got, [leaf.grad for leaf in leaves])


def test_next_token_counts_only_weighted_targets():
    config = families.gpt2().but(
        {"vocab": 31, "width": 16, "depth": 1, "context": 8, "block.mixer.heads": 2, "block.ffn.width": 16}
    )
    torch.manual_seed(0)
    model = config.build()
    tokens, targets = torch.randint(0, 31, (2, 2, 8)).unbind()
    weights = torch.tensor([[1.0] * 8, [0.0] * 5 + [1.0] * 3])
    loss = NextToken().build()(model, TokenBatch(tokens=tokens, targets=targets, weights=weights), 0)
    each = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none").view(2, 8)
    assert loss.terms["ce"].count == 11
    torch.testing.assert_close(loss.terms["ce"].sum, (each * weights).sum())


def test_smoothing_is_of_training_alone_and_evaluations_tell_the_plain_loss():
    config = families.gpt2().but(
        {"vocab": 31, "width": 16, "depth": 1, "context": 8, "block.mixer.heads": 2, "block.ffn.width": 16}
    )
    torch.manual_seed(0)
    model = config.build()
    tokens, targets = torch.randint(0, 31, (2, 2, 8)).unbind()
    batch = TokenBatch(tokens=tokens, targets=targets, weights=torch.ones(2, 8))
    smooth, plain = NextToken(smoothing=0.1).build(), NextToken().build()
    logits = model(tokens).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(smooth(model, batch, 0).terms["ce"].sum, expected)
    model.eval()
    assert smooth(model, batch, 0).terms["ce"].sum == plain(model, batch, 0).terms["ce"].sum


def test_a_head_that_does_not_train_has_no_gradient_and_changes_no_other():
    features, head = torch.randn(6, 8, requires_grad=True), torch.randn(31, 8)
    targets, weights = torch.randint(31, (6,)), torch.ones(6)
    for smoothing in (0.0, 0.1):
        ours, _ = linear_cross_entropy(features, head, targets, weights, smoothing=smoothing)
        expected = F.cross_entropy(features @ head.T, targets, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (ours, expected)))
