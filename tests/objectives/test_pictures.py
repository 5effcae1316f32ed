"""Every model of pictures under the objectives and the optimizer's settings that its paper trains it with."""

from dataclasses import replace

import pytest
import torch

from onefold.models.vision import sizes as vision_sizes
from onefold.objectives.classification import Classification
from onefold.objectives.reconstruction import Reconstruction
from onefold.training.optimizers.optim import AdamWConfig, MuonConfig
from tests.models.test_vision import SMALL

from .small_pictures import picture_batch

MAE = vision_sizes.mae("ti/16", image=32).but(
    {
        **{"encoder.patch": 8, "encoder.width": 24, "encoder.depth": 1, "encoder.block.mixer.heads": 3},
        **{"width": 16, "depth": 1, "block.mixer.heads": 2},
    }
)
OPTIMIZERS = [
    AdamWConfig(lr=3e-3, adaptive_clip=0.1, ema=0.9),
    MuonConfig(lr=3e-3, ema=0.9),
]


def learned(model, objective, batch, optimizer, steps: int = 12) -> list[float]:
    """The loss before each step."""
    model.train()
    losses = []
    for step in range(steps):
        torch.manual_seed(0)
        (term,) = objective(model, batch, step).terms.values()
        losses.append(term.sum.item() / term.count.item())
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    return losses


def batch_for(config, classes: int = 5):
    batch = picture_batch(6, classes, side=config.image)
    return replace(batch, images=batch.images[:, : config.channels])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.kind)
@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_each_model_learns_its_pictures_by_heart(config, optimizer):
    torch.manual_seed(0)
    model, batch = config.build(), batch_for(config)
    built = optimizer.but({"layer_decay": 0.9}).build(model)
    losses = learned(model, Classification(smoothing=0.1).build(), batch, built)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(average).all() for average in built.averages().values())


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_the_classifier_is_what_adaptive_clipping_leaves_alone(config):
    with torch.device("meta"):
        model = config.build()
    groups = AdamWConfig(adaptive_clip=0.01).build(model).param_groups
    free = {name for group in groups if not group["adaptive_clip"] for name in group["names"]}
    assert free == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_layers_learn_slower_towards_the_pixels(config):
    with torch.device("meta"):
        model = config.build()
    groups = AdamWConfig(lr=1.0, layer_decay=0.5).build(model).param_groups
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["classifier.weight"] == 1.0
    assert min(rates.values()) == 0.5**model.depths


def test_a_masked_autoencoder_learns_to_fill_in():
    torch.manual_seed(0)
    model, batch = MAE.build(), picture_batch(6, side=32)
    losses = learned(model, Reconstruction().build(), batch, AdamWConfig(lr=3e-3, ema=0.9).build(model), steps=25)
    assert losses[-1] < 0.97 * losses[0]


def test_evaluations_of_a_masked_autoencoder_repeat():
    torch.manual_seed(0)
    model, batch, objective = MAE.build().eval(), picture_batch(4, side=32), Reconstruction().build()
    first, again = (objective(model, batch, step).terms["mse"].sum for step in (0, 7))
    assert torch.equal(first, again)
