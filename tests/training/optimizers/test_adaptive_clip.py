"""Adaptive gradient clipping against equation 3, written out unit by unit."""

import numpy as np
import pytest
import torch
from torch import nn

from onefold.training.optimizers.adaptive_clip import clip_units
from onefold.training.optimizers.groups import Group
from onefold.training.optimizers.optim import AdamWConfig


def unit_by_unit(weight: np.ndarray, gradient: np.ndarray, limit: float) -> np.ndarray:
    """Equation 3 of arXiv 2102.06171."""
    clipped = gradient.copy()
    stacked = weight.ndim == 3
    units = [()] if weight.ndim < 2 else np.ndindex(weight.shape[:2]) if stacked else np.ndindex(weight.shape[:1])
    for unit in units:
        most = limit * max(np.linalg.norm(weight[unit]), 1e-3)
        if (norm := np.linalg.norm(gradient[unit])) > most:
            clipped[unit] = gradient[unit] * most / norm
    return clipped


@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (3, 4, 6), (4, 3, 2, 2), (4, 1, 7, 7)])
@pytest.mark.parametrize("limit", [0.01, 0.5, 10.0])
def test_it_is_equation_3(shape, limit):
    random = np.random.default_rng(0)
    weight, gradient = random.normal(size=(2, *shape)).astype(np.float32)
    weight, gradient = np.asarray(weight), np.asarray(gradient)
    if len(shape) > 1:
        weight[0], gradient[-1] = 0, 0  # a unit that begins at zero, and one without gradient
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    clip_units([parameter], limit)
    np.testing.assert_allclose(parameter.grad.numpy(), unit_by_unit(weight, gradient, limit), rtol=1e-5, atol=1e-9)


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "classifier": nn.Linear(8, 4), "unused": nn.Linear(2, 2)})
    for p in [*model["stem"].parameters(), *model["classifier"].parameters()]:
        p.grad = 100 * torch.randn_like(p)
    return model


def relative(p: nn.Parameter) -> float:
    return (p.grad.flatten(1).norm(dim=1) / p.flatten(1).norm(dim=1)).max().item()


def test_the_classifier_is_left_alone_unless_a_row_says_otherwise():
    model = model_with_gradients()
    AdamWConfig(adaptive_clip=0.01).build(model).step()
    assert relative(model["stem"].weight) == pytest.approx(0.01, rel=1e-2)
    assert relative(model["classifier"].weight) > 1

    model = model_with_gradients()
    rows = (Group(pattern="classifier*", adaptive_clip=3.0), Group(pattern="stem*", adaptive_clip=0.0))
    AdamWConfig(adaptive_clip=0.01, groups=rows).build(model).step()
    assert relative(model["classifier"].weight) == pytest.approx(0.03, rel=1e-2)
    assert relative(model["stem"].weight) > 1
