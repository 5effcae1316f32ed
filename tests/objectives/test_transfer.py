"""Classes and next tokens at once: the sum of two plain cross-entropies, whatever the padding."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import LabelledTextBatch, TokenBatch
from onefold.core.errors import UserError
from onefold.models import families
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.objectives.language import NextToken
from onefold.objectives.transfer import ClassificationAndNext, RegularizedNextToken


def test_both_tasks_are_plain_cross_entropies():
    torch.manual_seed(0)
    model = (
        families.gpt2()
        .but(
            {"vocab": 23, "width": 16, "depth": 2, "context": 16, "block.mixer.heads": 2, "block.ffn.width": 32}
            | {"classes": 3, "init": "fan_in"}
        )
        .build()
    )
    ids, lengths = torch.randint(0, 23, (3, 7)), [7, 4, 2]
    segments = torch.stack([(torch.arange(7) >= length).long() for length in lengths])
    targets = torch.eye(3)[[2, 0, 1]]
    batch = LabelledTextBatch(tokens=ids, targets=targets, segments=segments)
    objective = ClassificationAndNext(language=0.25).build()
    loss = objective(model, batch, 0)
    classes = following = 0.0
    for row, length in enumerate(lengths):
        features = model.features(ids[row : row + 1, :length])
        classes += F.cross_entropy(model.classifier.out(features[:, -1]), targets[row : row + 1], reduction="sum")
        following += F.cross_entropy(model.head(features)[0, :-1], ids[row, 1:length], reduction="sum")
    torch.testing.assert_close(loss.terms["ce"].sum, classes)
    torch.testing.assert_close(loss.terms["language"].sum, following)
    assert (loss.terms["ce"].weight, loss.terms["language"].weight) == (1, 0.25)
    assert {name: float(count) for name, count in objective.counts(batch).items()} == {"ce": 3, "language": 10}
    assert [float(term.count) for term in loss.terms.values()] == [3, 10]
    assert loss.metrics["accuracy"].count == 3
    with pytest.raises(ValueError, match="greater"):
        ClassificationAndNext(language=-1)


def lstm(**dropout):
    torch.manual_seed(0)
    return RecurrentConfig(vocab=23, width=6, hidden=8, depth=2, dropout=dropout).build()


def packed() -> TokenBatch:
    """Rows of two texts; the last three tokens of the second row are padding."""
    tokens = torch.randint(0, 23, (2, 7), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2]])
    weights = torch.ones(2, 7)
    weights[1, 4:] = 0
    return TokenBatch(tokens=tokens, targets=tokens.roll(-1, 1), weights=weights, segments=segments)


def test_activations_are_kept_small_and_steady():
    """Mean squares of each text's own outputs, one after the other, as AWD-LSTM adds them."""
    model, batch, objective = lstm(), packed(), RegularizedNextToken(ar=2.0, tar=0.5).build()
    loss = objective(model, batch, 0)
    texts = [batch.tokens[0, :3], batch.tokens[0, 3:], batch.tokens[1, :2], batch.tokens[1, 2:4]]
    said = [model.features(text[None])[0] for text in texts]
    size = torch.cat(said).square().mean()
    change = torch.cat([h.diff(dim=0) for h in said]).square().mean()
    plain = NextToken().build()(model, batch, 0).terms["ce"]
    torch.testing.assert_close(loss.terms["ar"].sum / loss.terms["ar"].count, size)
    torch.testing.assert_close(loss.terms["tar"].sum / loss.terms["tar"].count, change)
    torch.testing.assert_close(loss.terms["ce"].sum, plain.sum)
    assert [term.weight for term in loss.terms.values()] == [1, 2, 0.5]
    assert {name: float(c) for name, c in objective.counts(batch).items()} == {"ce": 11, "ar": 11, "tar": 7}
    assert set(objective(model.eval(), batch, 0).terms) == {"ce"}  # evaluations compare with other objectives
    with pytest.raises(UserError, match="recurrent"):
        objective(torch.nn.Identity(), batch, 0)


def test_what_was_dropped_has_no_size_but_changes_all_the_same():
    model, batch, objective = lstm(outputs=0.5), packed(), RegularizedNextToken().build()
    torch.manual_seed(3)
    features, said = model.activations(*batch.inputs())
    torch.manual_seed(3)
    terms = objective(model, batch, 0).terms
    asked = batch.weights > 0
    assert (features[asked] == 0).any()
    torch.testing.assert_close(features[features != 0], 2 * said[features != 0])
    torch.testing.assert_close(terms["ar"].sum, features.square().mean(-1)[asked].sum())
    undropped = RegularizedNextToken().build()(lstm(), batch, 0).terms
    torch.testing.assert_close(terms["tar"].sum, undropped["tar"].sum)
