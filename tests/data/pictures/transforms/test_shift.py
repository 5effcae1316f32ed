import numpy as np
import pytest

from onefold.data.pictures.transforms import Flip, PadCrop
from tests.data.pictures.transforms.helpers import applied, pictures


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flip_mirrors_some_and_leaves_the_others(channels):
    images = pictures(600, 7, 9, channels)
    found, _ = applied(Flip(probability=0.3), images)
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert ((found == images).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("border", ["zeros", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_crop_cuts_every_place_of_the_padded_picture(border, channels):
    images = pictures(500, 8, 10, channels)
    found, _ = applied(PadCrop(pad=2, border=border), images)
    mode = {"mode": "constant"} if border == "zeros" else {"mode": "reflect"}
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), **mode)
    places = set()
    for picture, cut in zip(padded, found):
        at = [(y, x) for y in range(5) for x in range(5) if np.array_equal(picture[y : y + 8, x : x + 10], cut)]
        assert len(at) == 1
        places.update(at)
    assert len(places) == 25
