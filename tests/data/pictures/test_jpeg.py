import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from onefold.data.pictures import jpeg
from onefold.data.pictures.files import BadPicture
from onefold.data.pictures.jpeg import cut_out
from tests.data.pictures.transforms.helpers import pictures

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


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_claims_another_size_is_refused_before_it_is_decoded(kind, channels, monkeypatch):
    """One damaged record must not ask for the memory of 65,500 × 65,500 pixels."""

    def never(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(jpeg, "decode", never)
    data = file(smooth(96, 128), kind)
    huge = data
    if kind == "jpeg":
        start = data.index(b"\xff\xc0") + 5  # height and width in the frame's header
        huge = data[:start] + (65500).to_bytes(2) * 2 + data[start + 4 :]
    for broken, size in ((huge, (96, 128) if kind == "jpeg" else (96, 127)), (data, (128, 96))):
        with pytest.raises(BadPicture, match=r"^it\.file is damaged: it says that it has \d+ × \d+ pixels instead of"):
            cut_out(memoryview(broken), "it.file", np.array(size), BOX, 16, channels)


def test_a_subsampling_without_a_name_is_read():
    data = bytearray(file(np.full((96, 128, 3), 90, np.uint8), "jpeg", subsampling=2))
    data[data.index(b"\xff\xc0") + 11] = 0x14  # 1 × 4
    found = cut_out(bytes(data), "it", np.array([96, 128]), BOX, 64, 3)
    assert np.abs(found.astype(int) - 90).max() <= 2
