import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from onefold.data.jpeg import cut_out
from onefold.data.picture_files import BadPicture
from tests.data.transforms.helpers import pictures

BOX = np.array([8, 16, 64, 80])


def smooth(height=96, width=128, channels=3):
    """A picture without noise, so that scales can be compared."""
    small = pictures(1, height // 16, width // 16, channels, seed=5)[0]
    image = Image.fromarray(small.squeeze(-1) if channels == 1 else small)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


def file(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("side", [8, 16, 24, 32, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_part_is_pillows_at_whatever_scale_it_was_decoded(kind, channels, side):
    pixels = smooth(channels=channels)
    options = {"quality": 98, "subsampling": 0} if kind == "jpeg" and channels == 3 else {}
    data = file(pixels, kind, **options)
    top, left, height, width = BOX
    image = Image.open(io.BytesIO(data)).crop((left, top, left + width, top + height))
    expected = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, channels)
    found = cut_out(memoryview(data), "it", np.array([96, 128]), BOX, side, channels)
    assert (found.shape, found.dtype) == ((side, side, channels), np.uint8)
    assert abs(found.astype(int) - expected).mean() < (2.5 if kind == "jpeg" else 0.5)


@pytest.mark.parametrize(
    ("side", "scale"), [(8, 1 / 8), (9, 2 / 8), (16, 2 / 8), (24, 3 / 8), (32, 4 / 8), (33, 1), (64, 1), (200, 1)]
)
def test_decoding_is_at_the_smallest_scale_that_covers_the_part(side, scale, monkeypatch):
    data = file(smooth(), "jpeg")
    decoded, original = [], simplejpeg.decode_jpeg

    def watched(*arguments, **options):
        decoded.append(original(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    cut_out(data, "it", np.array([96, 128]), BOX, side, 3)
    assert decoded[0].shape == (96 * scale, 128 * scale, 3)


def test_channels_are_those_asked_for():
    colour, grey = file(smooth(), "jpeg"), file(smooth(channels=1), "jpeg")
    whole = np.array([0, 0, 96, 128])
    as_grey = cut_out(colour, "it", np.array([96, 128]), whole, 32, 1)
    expected = np.asarray(Image.open(io.BytesIO(colour)).convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    assert abs(as_grey[..., 0].astype(int) - expected).mean() < 2
    as_colour = cut_out(grey, "it", np.array([96, 128]), whole, 32, 3)
    assert np.array_equal(as_colour[..., 0], as_colour[..., 2])


def test_a_damaged_file_is_named():
    data = file(smooth(), "jpeg")
    for broken in (data[:150], b"\xff\xd8" + bytes(300), file(smooth(), "png")[:200]):
        with pytest.raises(BadPicture, match=r"pictures/it\.jpg"):
            cut_out(broken, "pictures/it.jpg", np.array([96, 128]), BOX, 16, 3)
