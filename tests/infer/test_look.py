"""The same picture, however it comes, is seen the same; what is no picture is refused in a line."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from onefold.core.errors import UserError
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.reader import PictureReader
from onefold.infer.look import look

COLOUR = PictureReader(side=8)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_files_bytes_arrays_and_pillows_images_look_alike(tmp_path):
    pixels = noise(13, 20)
    path, buffer = tmp_path / "noise.png", io.BytesIO()
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(buffer, "PNG")
    seen = look(pixels, COLOUR)
    assert seen.shape == (3, 8, 8)
    assert seen.dtype == torch.uint8
    for other in (path, str(path), buffer.getvalue(), Image.fromarray(pixels)):
        assert torch.equal(look(other, COLOUR), seen)


def test_the_middle_is_seen():
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 12:28] = 200  # as wide as the picture is high
    assert (look(pixels, COLOUR) == 200).all()
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12] = 200
    assert (look(pixels, PictureReader(side=8, resize=16)) == 200).all()  # 8 of 16 pixels
    assert look(pixels, COLOUR)[:, 0].max() < 200


def test_the_whole_is_seen_squeezed():
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    seen = look(pixels, PictureReader(side=8, squeeze=True))
    assert (seen[..., :3] == 0).all()
    assert (seen[..., 5:] == 200).all()
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[4:12, 10:30] = 200
    assert (look(pixels, PictureReader(side=8, resize=16, squeeze=True)) == 200).all()  # half of each side
    edge = look(pixels, PictureReader(side=8, squeeze=True))
    assert edge[:, 0].max() < 200
    assert torch.equal(look(pixels, PictureReader(side=8, resize=4, squeeze=True)), edge)


@pytest.mark.parametrize(("squeeze", "resize"), [(False, None), (True, None), (False, 10), (True, 10), (True, 4)])
def test_batches_for_a_model_to_go_on_with_are_what_it_sees(tmp_path, squeeze, resize):
    rows, columns = np.mgrid[:24, :60]
    pixels = np.stack((rows * 10, columns * 4, rows + columns), axis=2).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / "one.png")
    reader = PictureReader(side=8, resize=resize, squeeze=squeeze, classes=("a", "b"))
    data = ImageData(path=str(tmp_path / "photos"), held_out=0)
    dataset = data.prepare(tmp_path, reader)
    assert dataset.processor == (reader if resize != 4 else reader.but({"resize": None}))
    batch = next(iter(dataset.evaluation("train", 2)))
    assert torch.equal(batch.images[0], look(pixels, reader))
    asked = data.but({"share": 0.5}).prepare(tmp_path, reader)  # the middle square, as the data say
    assert not asked.processor.squeeze


def test_a_picture_of_the_right_size_is_seen_bit_by_bit():
    pixels = noise(8, 8)
    assert np.array_equal(look(pixels, COLOUR).permute(1, 2, 0).numpy(), pixels)


def test_scaling_down_averages():
    """Antialiased as Pillow does it, whose bilinear filter is the oracle."""
    pixels = noise(64, 64)
    theirs = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(look(pixels, COLOUR).permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_colour_and_grey_become_what_the_model_reads():
    grey = noise(8, 8, 1)
    assert (look(grey, COLOUR) == torch.from_numpy(grey).permute(2, 0, 1)).all()
    assert torch.equal(look(grey[..., 0], COLOUR), look(grey, COLOUR))
    assert look(noise(8, 8), PictureReader(side=8, channels=1)).shape == (1, 8, 8)
    clear = np.dstack((noise(8, 8), np.zeros((8, 8, 1), np.uint8)))
    assert (look(clear, COLOUR) == 255).all()  # nothing but what lies behind


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 4, 4, 3), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), "1, 3 or 4 channels"),
        (b"GIF89a no", "the picture"),
        ("no/such/file.png", "no/such/file.png"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(UserError, match=message):
        look(picture, COLOUR)


def test_files_need_pillow_and_arrays_do_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "onefold.data.pictures.files", None)
    monkeypatch.delattr("onefold.data.pictures.files", raising=False)
    assert look(noise(8, 8), COLOUR).shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"onefold\[vision\]"):
        look(b"", COLOUR)
