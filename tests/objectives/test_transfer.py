"""Classes and next tokens at once: the sum of two plain cross-entropies, whatever the padding."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import LabelledTextBatch
from onefold.models import families
from onefold.objectives.transfer import ClassificationAndNext


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
