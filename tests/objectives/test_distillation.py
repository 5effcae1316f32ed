"""Distillation is its plain formula, gradients included, and torch's own divergence; a run comes near its teacher."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import TokenBatch
from onefold.core.errors import UserError
from onefold.models import families
from onefold.objectives import cross_entropy
from onefold.objectives.distillation import Distillation, distillation_loss
from onefold.objectives.language import NextToken

V = 13


def plain(logits, theirs, targets, weights, temperature, divergence, hard, soft=None):
    """As the papers write it, by torch's kl_div, of which (input, target) is KL(target ‖ input)."""
    q, p = ((x / temperature).log_softmax(-1) for x in (logits, theirs))
    pair = (q, p) if divergence == "forward" else (p, q)
    each = F.kl_div(*pair, reduction="none", log_target=True).sum(-1)
    nll = F.cross_entropy(logits, targets, reduction="none")
    return (weights * ((1 - hard if soft is None else soft) * temperature**2 * each + hard * nll)).sum()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("temperature", "hard", "soft"), [(1.0, 0.0, None), (2.5, 0.0, None), (0.7, 0.3, None), (1.5, 1.0, 0.8)]
)
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_equals_the_plain_formula_with_gradients(monkeypatch, divergence, temperature, hard, soft, biased):
    monkeypatch.setattr(cross_entropy, "FEWEST", 1)
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 100)  # several chunks, the last one short
    torch.manual_seed(0)
    features, head = torch.randn(7, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
    bias = torch.randn(V, requires_grad=True) if biased else None
    leaves = (features, head, bias) if biased else (features, head)
    teacher = torch.randn(7, 5), torch.randn(V, 5), torch.randn(V)
    targets, weights = torch.randint(0, V, (7,)), torch.rand(7)
    settings = temperature, divergence, hard, soft
    total, kl, ce = distillation_loss((features, head, bias), teacher, targets, weights, *settings)
    (total * 0.3).backward()
    got = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None

    logits, theirs = features @ head.T + (bias if biased else 0), teacher[0] @ teacher[1].T + teacher[2]
    expected = plain(logits, theirs, targets, weights, *settings)
    (expected * 0.3).backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(got, [leaf.grad for leaf in leaves])
    torch.testing.assert_close(ce, (weights * F.cross_entropy(logits, targets, reduction="none")).sum())
    soft = plain(logits, theirs, targets, weights, temperature, divergence, 0.0) / temperature**2
    torch.testing.assert_close(kl, soft)


def small(seed: int, **changes):
    changes = {"vocab": 31, "width": 16, "depth": 1, "context": 8, "block.mixer.heads": 2, **changes}
    torch.manual_seed(seed)
    return families.gpt2().but({**changes, "block.ffn.width": 16}).build()


def some(weights=None) -> TokenBatch:
    tokens, targets = torch.randint(0, 31, (2, 2, 8), generator=torch.Generator().manual_seed(0)).unbind()
    return TokenBatch(tokens=tokens, targets=targets, weights=torch.ones(2, 8) if weights is None else weights)


def test_tokens_without_weight_count_for_nothing_and_the_teacher_stays_as_it_is():
    teacher, model = small(0).requires_grad_(False), small(1).eval()
    weights = torch.tensor([[1.0] * 8, [0.0] * 5 + [1.0, 0.5, 1.0]])
    loss = Distillation(hard=0.5).build({"teacher": teacher})(model, some(weights), 0)
    expected = plain(
        *(net(some().tokens).flatten(0, 1) for net in (model, teacher)),
        some().targets.flatten(),
        *(weights.flatten(), 1.0, "forward", 0.5),
    )
    torch.testing.assert_close(loss.terms["distillation"].sum, expected)
    assert loss.terms["distillation"].count == weights.sum()
    loss.terms["distillation"].sum.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_of_a_student_that_is_its_teacher_nothing_is_asked():
    teacher = small(0)
    for divergence in ("forward", "reverse"):
        loss = Distillation(divergence=divergence, temperature=2.0).build({"teacher": teacher})(teacher, some(), 0)
        assert loss.terms["distillation"].sum.item() == pytest.approx(0, abs=1e-5)
    hard = Distillation().build({"teacher": teacher})(teacher, some(), 0).metrics["ce"].sum
    torch.testing.assert_close(hard, NextToken().build()(teacher, some(), 0).terms["ce"].sum.detach())


def test_a_teacher_of_other_tokens_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"the teacher tells 40 tokens apart, the student 31.*one vocabulary"):
        Distillation().build({"teacher": small(0, vocab=40)})(small(1), some(), 0)
    with pytest.raises(UserError, match=r"frozen\.teacher=PATH"):
        Distillation().build({})


def test_from_a_step_on_only_the_data_teach_and_nobody_asks_the_teacher():
    teacher, model = small(0), small(1)
    staged = Distillation(hard=1, soft=1, until=5).build({"teacher": teacher})
    always = Distillation(hard=1, soft=1).build({"teacher": teacher})
    before = staged(model, some(), 4)
    torch.testing.assert_close(before.terms["distillation"].sum, always(model, some(), 4).terms["distillation"].sum)
    assert before.metrics["kl"].sum > 0
    teacher.features = None
    after = staged(model, some(), 5)
    torch.testing.assert_close(after.terms["distillation"].sum, NextToken().build()(model, some(), 5).terms["ce"].sum)
    assert set(after.metrics) == {"ce"}
    assert not after.metrics["ce"].sum.requires_grad


def test_a_stage_without_anything_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing to learn: set hard"):
        Distillation(until=5)
    with pytest.raises(ValueError, match="nothing for the teacher"):
        Distillation(hard=1.0)
