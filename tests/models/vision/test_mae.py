"""The masked autoencoder: what it hides, what its encoder is, and that a classifier begins with it."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.mae import MAEConfig
from onefold.nn.vision.patches import unpatchify
from tests.models.test_vision import SMALL, fresh

CONFIG = vision_sizes.mae("ti/16", image=32).but(
    {
        **{"encoder.patch": 8, "encoder.width": 24, "encoder.depth": 2},
        **{"encoder.block.mixer.heads": 3, "encoder.block.ffn.width": 40},
        **{"width": 16, "depth": 2, "block.mixer.heads": 2, "block.ffn.width": 24},
    }
)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_the_published_encoder_and_decoder_have_their_sizes():
    with torch.device("meta"):
        model = vision_sizes.mae("b/16").build()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = 197 * (768 + 512)
    assert trained == 111_907_840 - fixed
    assert sum(p.numel() for p in model.encoder.parameters()) == 85_798_656  # ViT-B/16 without a classifier
    assert MAEConfig.from_json(model.config.to_json()) == model.config


def test_three_quarters_are_hidden_and_the_target_is_the_picture(pixels):
    model = fresh(CONFIG).eval()
    prediction, target, mask = model.reconstruct(pixels)
    assert prediction.shape == target.shape == (3, 16, 192)
    assert (~mask).sum(1).tolist() == [4, 4, 4]
    assert torch.equal(unpatchify(target.view(3, 4, 4, 192), 8), pixels)


def test_masks_follow_the_seed(pixels):
    model = fresh(CONFIG).eval()
    masks = [model.reconstruct(pixels, seed)[2] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(0)
    drawn = [model.reconstruct(pixels)[2] for _ in range(2)]
    torch.manual_seed(0)
    assert torch.equal(model.reconstruct(pixels)[2], drawn[0])
    assert not torch.equal(*drawn)


@torch.no_grad()
def test_what_is_hidden_is_not_seen(pixels):
    model = fresh(CONFIG).eval()
    prediction, target, mask = model.reconstruct(pixels, 5)
    spoilt = torch.where(mask[..., None], 7.0, target).view(3, 4, 4, 192)
    assert torch.equal(model.reconstruct(unpatchify(spoilt, 8), 5)[0], prediction)
    spoilt = torch.where(mask[..., None], target, target + 1).view(3, 4, 4, 192)
    assert not torch.allclose(model.reconstruct(unpatchify(spoilt, 8), 5)[0], prediction)


def test_a_gradient_reaches_all_but_the_fixed_places(pixels):
    model = fresh(CONFIG).train()
    prediction, target, mask = model.reconstruct(pixels)
    (prediction - target).square()[mask].sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == ["places", "encoder.embed.places"]


@torch.no_grad()
def test_a_vision_transformer_begins_with_its_encoder(pixels):
    model = fresh(CONFIG).eval()
    classifier = SMALL["vit"].but({"pool": "mean"}).build().eval()
    classifier.load_state_dict(classifier.adopt(dict(model.named_parameters())))
    torch.testing.assert_close(classifier.features(pixels), model.features(pixels))
    torch.testing.assert_close(classifier(pixels), classifier.classifier(model.pool(model.features(pixels))))


@torch.no_grad()
def test_larger_pictures_are_read_too():
    prediction, target, mask = fresh(CONFIG).eval().reconstruct(torch.randn(1, 3, 40, 48))
    assert prediction.shape == target.shape == (1, 30, 192)
    assert (~mask).sum() == 7


def test_impossible_settings_are_refused():
    for changes, said in [({"encoder.classes": 3}, "no classifier"), ({"masked": 0.99}, "leaves none")]:
        with pytest.raises(UserError, match=said):
            CONFIG.but(changes)
