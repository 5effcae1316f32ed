"""What is the vision transformer's own: places, class token, squares that are left out."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes
from onefold.nn.drop_path import DropPath, rising
from onefold.nn.vision.patches import Patches, patchify, resample, sines, unpatchify
from tests.models.test_vision import SMALL, fresh, pictures

COUNTS = {
    "ti/16": 5_717_416,
    "s/16": 22_050_664,
    "b/16": 86_567_656,
    "b/32": 88_224_232,
    "l/16": 304_326_632,
    "l/32": 306_535_400,
    "h/14": 632_045_800,
}


@pytest.mark.parametrize("size", COUNTS)
def test_published_parameter_counts(size):
    assert count_parameters(vision_sizes.vit(size)) == COUNTS[size]


def test_unknown_sizes_and_impossible_settings_are_refused():
    with pytest.raises(UserError, match="did you mean b/16"):
        vision_sizes.vit("b16")
    for changes, said in [
        ({"image": 30}, "multiple of patch"),
        ({"class_token": False}, "pool must be"),
        ({"block.mixer.causal": True}, "must be false"),
    ]:
        with pytest.raises(UserError, match=said):
            SMALL["vit"].but(changes)


def test_patches_are_a_convolution_whose_stride_is_its_size():
    torch.manual_seed(0)
    x, patches = torch.randn(2, 3, 18, 13), Patches(3, 4, 7)
    weight = patches.linear.weight.view(7, 4, 4, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(x, weight, patches.linear.bias, stride=4)
    torch.testing.assert_close(patches(x).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(unpatchify(patchify(x, 4), 4), x[:, :, :16, :12])


def test_resampled_places_keep_what_is_smooth():
    ramp = torch.arange(8.0)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    places = torch.stack((rows, columns), -1).flatten(0, 1)
    assert resample(places, (8, 8)) is places
    doubled = resample(places, (16, 16)).view(16, 16, 2)
    inner = (torch.arange(16) + 0.5) / 2 - 0.5  # centres of the new squares in units of the old
    torch.testing.assert_close(doubled[4:-4, 4:-4, 1], inner[4:-4].expand(8, 8), atol=1e-4, rtol=0)
    assert resample(places, (3, 5)).shape == (15, 2)


@torch.no_grad()
def test_fixed_places_are_waves_that_training_leaves_alone():
    config = SMALL["vit"].but({"places": "sines"})
    model = config.build()
    assert not model.embed.places.requires_grad
    assert not model.embed.places[0].any()
    column, row = 3, 2
    wave = torch.cat([f(p / 10000 ** (torch.arange(6) / 6)) for p in (column, row) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(sines(4, 24)[row * 4 + column], wave, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed.places[1:], sines(4, 24))


@torch.no_grad()
def test_squares_that_are_left_out_are_not_seen():
    model = fresh(SMALL["vit"]).eval()
    x, kept = pictures(SMALL["vit"]), torch.tensor([[3, 9, 4], [0, 1, 15]])
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, kept, True)
    hidden = torch.where(seen.view(2, 4, 4, 1), patchify(x, 8), 99.0)
    torch.testing.assert_close(model.features(x, kept), model.features(unpatchify(hidden, 8), kept))
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.features(x, everything), model.features(x))


def test_dropped_paths_keep_the_mean_and_are_off_outside_of_training():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))  # a row is dropped whole
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    assert [b.drop_path for b in SMALL["vit"].but({"depth": 3, "drop_path": 0.2}).blocks()] == pytest.approx(
        [0, 0.1, 0.2]
    )
    assert rising(0.3, 1) == [0]


def test_places_are_stretched_when_a_model_for_larger_pictures_begins():
    small, large = fresh(SMALL["vit"]), SMALL["vit"].but({"image": 64}).build()
    places = large.adopt(dict(small.named_parameters()))["embed.places"]
    assert places.shape == (65, 24)
    assert torch.equal(places[0], small.embed.places[0])
    torch.testing.assert_close(places[1:], resample(small.embed.places[1:], (8, 8)))
