"""Each loss is its plain formula, gradients included, and says what to do with data of another task."""

import pytest
import torch
from torch import nn

from onefold.core.batch import UNASKED, LabelledTextBatch
from onefold.core.errors import UserError
from onefold.objectives.fine_tuning import Regression, SpanSelection, TokenClassification

B, T, C = 3, 7, 4


class Scores(nn.Module):
    """A model whose outputs are its parameters."""

    def __init__(self, *shape: int):
        super().__init__()
        self.scores = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def features(self, *inputs):
        return self.scores

    def head(self, features):
        return features


def batch(targets, segments=None):
    return LabelledTextBatch(tokens=torch.zeros(B, T, dtype=torch.long), targets=targets, segments=segments)


def gradient(model, value):
    return torch.autograd.grad(value, model.scores, retain_graph=True)[0]


def test_tokens_that_are_asked():
    model, targets = Scores(B, T, C), torch.full((B, T), UNASKED)
    targets[0, 2], targets[2, 0], targets[2, 6] = 1, 3, 0
    loss = TokenClassification().build()(model, batch(targets), 0)
    shares = model.scores.softmax(-1)
    expected = -(shares[0, 2, 1] * shares[2, 0, 3] * shares[2, 6, 0]).log()
    torch.testing.assert_close(loss.terms["ce"].sum, expected)
    torch.testing.assert_close(gradient(model, loss.terms["ce"].sum), gradient(model, expected))
    assert loss.terms["ce"].count == 3
    best = model.scores.argmax(-1)
    right = int(best[0, 2] == 1) + int(best[2, 0] == 3) + int(best[2, 6] == 0)
    assert loss.metrics["accuracy"].sum == right


def test_both_ends_of_an_answer_never_in_padding():
    model, targets = Scores(B, T, 2), torch.tensor([[0, 0], [2, 4], [3, 3]])
    segments = torch.zeros(B, T, dtype=torch.long)
    segments[1, 5:] = 1
    loss = SpanSelection().build()(model, batch(targets, segments), 0)
    expected = torch.zeros(())
    for row, ends in enumerate(targets.tolist()):
        real = model.scores[row, : 5 if row == 1 else T]
        expected = expected - sum(real[:, k].log_softmax(0)[end] for k, end in enumerate(ends)) / 2
    torch.testing.assert_close(loss.terms["ce"].sum, expected)
    torch.testing.assert_close(gradient(model, loss.terms["ce"].sum), gradient(model, expected))
    assert loss.terms["ce"].count == B
    with torch.no_grad():
        model.scores[1, 6] = 99  # padding is never the answer
        model.scores[1, 2, 0] = model.scores[1, 4, 1] = 50
    assert SpanSelection().build()(model, batch(targets, segments), 0).metrics["exact"].sum >= 1


def test_numbers():
    model, targets = Scores(B, 1), torch.tensor([[0.5], [-1.0], [2.0]])
    loss = Regression().build()(model, batch(targets), 0)
    expected = (model.scores - targets).square().sum()
    torch.testing.assert_close(loss.terms["mse"].sum, expected)
    torch.testing.assert_close(gradient(model, loss.terms["mse"].sum), 2 * (model.scores - targets))
    with pytest.raises(UserError, match=r"one output, not \[2\]: model.classes=1"):
        Regression().build()(Scores(B, 2), batch(targets), 0)


@pytest.mark.parametrize(
    ("objective", "task"), [(TokenClassification(), "token"), (SpanSelection(), "span"), (Regression(), "regression")]
)
def test_data_of_another_task(objective, task):
    with pytest.raises(UserError, match=f"data.task={task}"):
        objective.build()(Scores(B, T, 2), batch(torch.zeros(B, 5)), 0)
