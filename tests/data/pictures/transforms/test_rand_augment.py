import numpy as np
import pytest
from PIL import Image

from onefold.data.pictures.transforms import RandAugment
from onefold.data.pictures.transforms.rand_augment import OPERATIONS, _moved, rotated
from tests.data.pictures.transforms.helpers import applied, pictures


def affine(picture, matrix, fill):
    colour = (fill,) * picture.shape[2] if picture.shape[2] > 1 else fill
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[2] == 1 else picture)
    done = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=colour)
    return np.asarray(done).reshape(picture.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_warps_are_pillows(channels):
    images = pictures(3, 33, 47, channels)
    amounts = np.array([0.0, 0.213, -0.3])
    for place, index in (((0, 1), 1), ((1, 0), 3)):
        found = _moved(images, place, amounts, 99)
        for picture, amount, ours in zip(images, amounts, found):
            matrix = [1, 0, 0, 0, 1, 0]
            matrix[index] = float(amount)
            assert (affine(picture, matrix, 99) == ours).mean() > 0.999
    for place, index in (((0, 2), 2), ((1, 2), 5)):
        found = _moved(images, place, 40 * amounts, 99)
        matrix = [1, 0, 0, 0, 1, 0]
        matrix[index] = float(40 * amounts[1])
        assert (affine(images[1], matrix, 99) == found[1]).mean() > 0.999
    found = rotated(images, np.array([0.0, 17.3, -30.0]), 0)
    for picture, degrees, ours in zip(images, (0, 17.3, -30), found):
        image = Image.fromarray(picture.squeeze(-1) if channels == 1 else picture)
        assert (np.asarray(image.rotate(degrees)).reshape(picture.shape) == ours).mean() > 0.995


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_shape_and_weak_ones_hardly_change_anything(channels):
    images = pictures(4, 16, 20, channels)
    for i, operation in enumerate(OPERATIONS):
        strong = operation(images, np.array([-1, -0.5, 0.5, 1.0]), 0)
        assert (strong.shape, strong.dtype) == (images.shape, np.uint8)
        if i not in (1, 2):  # these two have no strength
            assert np.array_equal(operation(images, np.zeros(4), 0), images)


def test_pictures_get_different_operations():
    images = np.repeat(pictures(1, 16, 16, 3), 300, axis=0)
    found, _ = applied(RandAugment(operations=1), images)
    assert len(np.unique(found.reshape(300, -1), axis=0)) > 130  # some give few different ones
    same, _ = applied(RandAugment(probability=0), images)
    assert np.array_equal(same, images)
    stronger, _ = applied(RandAugment(operations=3), images)
    distance = [abs(x.astype(int) - images).mean() for x in (found, stronger)]
    assert distance[1] > 1.5 * distance[0]
