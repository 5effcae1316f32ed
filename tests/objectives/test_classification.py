"""Cross-entropy against probabilities: its plain formula, its counts, and what the metrics count."""

import pytest
import torch
from torch import Tensor, nn

from onefold.core.batch import ImageBatch
from onefold.core.errors import UserError
from onefold.objectives.classification import Classification, soft_cross_entropy

from .small_pictures import SmallClassifier, picture_batch


def plain(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    return -(targets * logits.log_softmax(1)).sum()


def test_the_loss_is_the_plain_formula_of_mixed_targets():
    torch.manual_seed(0)
    logits = torch.randn(7, 10, requires_grad=True)
    targets = torch.rand(7, 10).softmax(1)
    loss = soft_cross_entropy(logits, targets, 0.1)
    torch.testing.assert_close(loss.terms["ce"].sum, plain(logits, targets, 0.1))
    assert loss.terms["ce"].count == 7
    got, expected = (
        torch.autograd.grad(total, logits)[0] for total in (loss.terms["ce"].sum, plain(logits, targets, 0.1))
    )
    torch.testing.assert_close(got, expected)
    # d loss / d logits is what was said less what was meant.
    torch.testing.assert_close(got, logits.softmax(1) - (0.9 * targets + 0.01))


def test_targets_are_smoothed_while_training_only():
    model, batch = SmallClassifier(), picture_batch(5)
    loss = Classification(smoothing=0.2).build()
    logits = model.head(model.features(batch.pixels()))
    torch.testing.assert_close(loss(model.train(), batch, 0).terms["ce"].sum, plain(logits, batch.targets, 0.2))
    torch.testing.assert_close(loss(model.eval(), batch, 0).terms["ce"].sum, plain(logits, batch.targets))


def test_metrics_count_pictures():
    logits = torch.arange(8.0).flip(0).repeat(4, 1)  # class 0 first, then 1, 2, …
    targets = torch.eye(8)[[0, 4, 5, 7]]
    metrics = soft_cross_entropy(logits, targets).metrics
    assert {name: (int(term.sum), int(term.count)) for name, term in metrics.items()} == {
        "accuracy": (1, 4),
        "top5": (2, 4),
    }
    assert set(soft_cross_entropy(logits[:, :5], targets[:2, :5].repeat(2, 1)).metrics) == {"accuracy"}


def test_micro_batches_add_up_to_the_batch():
    model, batch = SmallClassifier(), picture_batch(6)
    objective = Classification().build()
    whole, parts = objective(model, batch, 0), [objective(model, part, 0) for part in batch.split(4)]
    torch.testing.assert_close(sum(p.terms["ce"].sum for p in parts), whole.terms["ce"].sum)
    assert sum(p.terms["ce"].count for p in parts) == whole.terms["ce"].count
    assert sum(p.metrics["accuracy"].sum for p in parts) == whole.metrics["accuracy"].sum


def test_it_can_be_counted_on_the_meta_device():
    with torch.device("meta"):
        model = SmallClassifier()
    loss = Classification().build()(model, picture_batch(2).to("meta"), 0)
    loss.terms["ce"].sum.backward()
    assert next(model.parameters()).grad is not None


def test_what_does_not_fit_is_said():
    objective, batch = Classification().build(), picture_batch(2)
    with pytest.raises(UserError, match=r"set model\.classes=10"):
        objective(SmallClassifier(classes=3), batch, 0)
    with pytest.raises(UserError, match="have none"):
        objective(SmallClassifier(), ImageBatch(images=batch.images), 0)


def test_a_model_learns_the_difference_between_dark_and_bright():
    torch.manual_seed(0)
    images = torch.cat((torch.randint(0, 100, (16, 1, 8, 8)), torch.randint(150, 255, (16, 1, 8, 8)))).byte()
    batch = ImageBatch(images=images, targets=torch.eye(2).repeat_interleave(16, 0))
    model = nn.Module()
    model.features, model.head = nn.Flatten(), nn.Linear(64, 2)
    objective, optimizer = Classification().build(), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        term = objective(model, batch, 0).terms["ce"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    metrics = objective(model, batch, 0).metrics
    assert metrics["accuracy"].sum == metrics["accuracy"].count
