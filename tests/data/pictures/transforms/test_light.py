import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from onefold.data.pictures.transforms import ColorJitter, light
from tests.data.pictures.transforms.helpers import applied, pictures

FACTORS = np.array([0.1, 0.63, 1.0, 1.37, 1.9])


def by_pillow(images, change):
    """`change(picture, i)` of every row as a Pillow picture."""
    found = [
        np.asarray(change(Image.fromarray(p.squeeze(-1) if p.shape[2] == 1 else p), i)) for i, p in enumerate(images)
    ]
    return np.stack(found).reshape(images.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (light.brightness, ImageEnhance.Brightness),
        (light.contrast, ImageEnhance.Contrast),
        (light.saturation, ImageEnhance.Color),
        (light.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(ours, theirs, channels):
    images = pictures(len(FACTORS), 21, 34, channels)
    expected = by_pillow(images, lambda p, i: theirs(p).enhance(float(np.float32(FACTORS[i]))))
    found = ours(images, FACTORS)
    assert abs(found.astype(int) - expected).max() <= 1  # the order of float additions differs
    assert (found == expected).mean() > 0.99
    assert np.array_equal(ours(images, np.ones(5)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_tables_are_pillows(channels):
    images = pictures(5, 23, 31, channels)
    images[1] = images[1] // 4 + 60  # of low contrast
    images[2] = 77
    images[3, ..., 0] = 200
    assert np.array_equal(light.autocontrast(images), by_pillow(images, lambda p, i: ImageOps.autocontrast(p)))
    assert np.array_equal(light.equalize(images), by_pillow(images, lambda p, i: ImageOps.equalize(p)))
    for threshold in (0, 100, 128, 256):
        expected = by_pillow(images, lambda p, i, t=threshold: ImageOps.solarize(p, t))
        assert np.array_equal(light.solarize(images, np.full(5, threshold)), expected)
    for bits in range(1, 9):
        expected = by_pillow(images, lambda p, i, b=bits: ImageOps.posterize(p, b))
        assert np.array_equal(light.posterize(images, np.full(5, bits)), expected)


def test_luminance_is_pillows():
    images = pictures(4, 16, 16, 3)
    expected = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in images])
    assert np.array_equal(light.luminance(images), expected)


def test_hue_turns_as_colorsys_does():
    images = pictures(3, 9, 11, 3)
    images[0, 0, :4] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]]
    turns = np.array([0.0, 0.21, -0.4])
    found = light.turned(images, turns)
    for picture, turn, ours in zip(images, turns, found):
        for pixel, own in zip(picture.reshape(-1, 3) / 255, ours.reshape(-1, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
            assert abs(own - expected).max() <= 0.51
    assert np.array_equal(found[0], images[0])


def test_jitter_changes_every_picture_by_its_own_factors():
    images = np.repeat(pictures(1, 16, 16, 3), 400, axis=0)
    found, _ = applied(ColorJitter(contrast=0, saturation=0), images)
    factors = found.reshape(400, -1).mean(1) / images[0].mean()
    assert len(np.unique(factors.round(3))) > 150
    assert 0.58 < factors.min() < 0.65
    assert 1.2 < factors.max() < 1.42  # the brightest values are cut off
    rare, _ = applied(ColorJitter(probability=0.2), images)
    assert (rare == images).all((1, 2, 3)).mean() == pytest.approx(0.8, abs=0.06)
    grey, _ = applied(ColorJitter(hue=0.1), images[..., :1])
    assert grey.shape == (400, 16, 16, 1)
