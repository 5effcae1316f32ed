import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onefold.data.draws import Draws
from onefold.data.pictures.transforms import CentreCrop, RandomResizedCrop, Resize
from tests.data.pictures.transforms.helpers import applied, pictures

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [Resize, CentreCrop, RandomResizedCrop])
def test_what_is_cut_is_scaled_as_pillow_does(config, channels, interpolation):
    images = pictures(6, 41, 59, channels)
    frame = config(side=24, interpolation=interpolation)
    found, _ = applied(frame, images, seed=1)
    boxes = frame.build().boxes(np.tile((41, 59), (6, 1)), Draws(1, 0, np.arange(6)))
    for picture, (top, left, height, width), ours in zip(images, boxes, found):
        part = Image.fromarray(picture[top : top + height, left : left + width].squeeze())
        expected = np.asarray(part.resize((24, 24), PILLOW[interpolation])).reshape(24, 24, channels)
        assert abs(expected.astype(int) - ours).max() <= 1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=9), st.integers(0, 99))
def test_boxes_lie_inside_whatever_the_sizes(sizes, seed):
    sizes = np.array(sizes)
    for frame in (Resize(side=8), CentreCrop(side=8, share=0.875), RandomResizedCrop(side=8)):
        boxes = frame.build().boxes(sizes, Draws(seed, 0, np.arange(len(sizes))))
        assert boxes.min(initial=1, where=np.array([False, False, True, True])) >= 1
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_the_middle_is_the_middle():
    sizes = np.array([[256, 256], [300, 500], [501, 300]])
    boxes = CentreCrop(side=224, share=0.875).build().boxes(sizes, Draws(0, 0, np.arange(3)))
    assert boxes.tolist() == [[16, 16, 224, 224], [19, 119, 262, 262], [119, 19, 262, 262]]


def test_random_parts_have_the_areas_and_ratios_asked_for():
    sizes = np.tile((500, 400), (20_000, 1))
    boxes = RandomResizedCrop(side=8).build().boxes(sizes, Draws(0, 0, np.arange(20_000)))
    height, width = boxes[:, 2], boxes[:, 3]
    area, ratio = height * width / 200_000, width / height
    assert 0.078 < area.min() < 0.09
    assert area.max() > 0.98
    assert (0.74 < ratio.min() < 0.76, 1.32 < ratio.max() < 1.35) == (True, True)
    assert np.quantile(area[area < 0.5], 0.5) == pytest.approx((0.08 + 0.5) / 2, abs=0.01)  # uniform where all fit
    assert np.log(ratio[area < 0.5]).mean() == pytest.approx(0, abs=0.01)
    top, left = boxes[:, 0] / np.maximum(500 - height, 1), boxes[:, 1] / np.maximum(400 - width, 1)
    assert (top.mean(), left.mean()) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_where_nothing_fits_the_middle_is_taken():
    sizes = np.array([[10, 1000], [1000, 10]])
    boxes = RandomResizedCrop(side=8, area=(0.9, 1.0)).build().boxes(sizes, Draws(0, 0, np.arange(2)))
    assert boxes.tolist() == [[0, 494, 10, 13], [494, 0, 13, 10]]
