"""Neighbours against a loop over pictures; the probe against its optimality, and against Newton's method."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from onefold.core.batch import ImageBatch
from onefold.core.errors import UserError
from onefold.infer.evaluation import features
from onefold.infer.evaluation.features import (
    Features,
    features_of,
    fit_probe,
    judge_features,
    linear_probe,
    nearest_neighbours,
)
from tests.objectives.small_pictures import SmallClassifier, picture_batch


def clouds(rows: int, classes: int = 3, width: int = 5, spread: float = 1.0, seed: int = 0) -> Features:
    """Points around a centre a class, on very different scales."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    vectors = centres[labels] + spread * torch.randn(rows, width, generator=generator)
    return Features(vectors * torch.tensor([1e-2, 1.0, 50.0, 1.0, 1.0]) + 3, labels)


def test_features_are_the_pooled_ones_in_order_and_the_mode_comes_back():
    model, batch = SmallClassifier().train(), picture_batch(7)
    found = features_of(model, batch.split(3))
    torch.testing.assert_close(found.vectors, model.pool(model.features(batch.pixels())))
    assert torch.equal(found.labels, batch.targets.argmax(1))
    assert model.training
    assert not found.vectors.requires_grad
    with pytest.raises(UserError, match="no pictures"):
        features_of(model, [])
    with pytest.raises(UserError, match="no classes"):
        features_of(model, [ImageBatch(images=batch.images)])


def test_neighbours_vote_as_in_a_loop(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    bank, asked = clouds(40, spread=2.0), clouds(11, spread=2.0, seed=1)
    expected = []
    for vector in asked.vectors.double().numpy():
        known = bank.vectors.double().numpy()
        cosine = known @ vector / (np.linalg.norm(known, axis=1) * np.linalg.norm(vector))
        votes = np.zeros(3)
        for i in np.argsort(-cosine)[:7]:
            votes[bank.labels[i]] += np.exp(cosine[i] / 0.07)
        expected.append(int(votes.argmax()))
    assert nearest_neighbours(bank, asked.vectors, k=7).tolist() == expected
    assert torch.equal(nearest_neighbours(bank, bank.vectors, k=1), bank.labels)  # the nearest to each is itself
    assert len(nearest_neighbours(bank, asked.vectors, k=1000)) == 11


@pytest.mark.parametrize("decay", [1e-3, 0.3])
def test_the_probe_is_where_newton_ends(decay):
    data = clouds(60, classes=2, spread=1.5)
    probe = fit_probe(data, 2, decay)
    # With two classes: one plane between them, w = w1 - w0 and decay / 2 of it, by Newton's method.
    x = data.vectors.double().numpy()
    mean, std = x.mean(0), x.std(0)
    x, y = np.c_[(x - mean) / std, np.ones(len(x))], data.labels.numpy()
    penalty = np.diag([decay / 2] * (x.shape[1] - 1) + [0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + penalty
        w -= np.linalg.solve(hessian, x.T @ (p - y) / len(x) + penalty @ w)
    expected = x @ w
    logits = probe(data.vectors)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=2e-3 * np.abs(expected).max())


def test_the_probe_finds_planes_and_chooses_its_decay():
    train, test = clouds(120, spread=0.3), clouds(60, spread=0.3, seed=1)
    probe = linear_probe(train, 3)
    near, far = fit_probe(train, 3, 0.01, start=fit_probe(train, 3, 0.1)), fit_probe(train, 3, 0.01)
    torch.testing.assert_close(near(test.vectors), far(test.vectors), rtol=0, atol=1e-2)  # there is one minimum
    assert (probe(test.vectors).argmax(1) == test.labels).double().mean() > 0.95
    noise = Features(train.vectors[torch.randperm(120, generator=torch.Generator().manual_seed(0))], train.labels)
    assert linear_probe(noise, 3).decay > 0.01 > probe.decay  # nothing to be learned: the most cautious serves best


def test_a_feature_that_never_changes_does_no_harm():
    data = clouds(30)
    data.vectors[:, 2] = 4.0
    probe = fit_probe(data, 3, 1e-3)
    assert torch.isfinite(probe.weight).all()
    assert torch.isfinite(probe(data.vectors)).all()


@dataclass
class TwoSplits:
    """Classes that differ in brightness; the held-out pictures are others."""

    side: int = 8

    def evaluation(self, split: str, rows: int) -> list[ImageBatch]:
        generator = torch.Generator().manual_seed(int(split == "train"))
        labels = torch.arange(40) % 4
        images = (
            torch.randint(0, 60, (40, 3, self.side, self.side), generator=generator) + 64 * labels[:, None, None, None]
        )
        return ImageBatch(images=images.byte(), targets=torch.eye(4)[labels]).split(rows)


def test_features_of_a_data_set_are_judged_on_what_was_held_out():
    found = judge_features(SmallClassifier(), TwoSplits(), rows=16, k=5)
    assert set(found) == {"neighbours", "probe", "decay"}
    assert found["neighbours"] > 0.9
    assert found["probe"] > 0.9
