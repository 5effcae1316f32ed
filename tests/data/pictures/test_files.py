import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from onefold.data.pictures.files import BadPicture, decode, encode, fit, header, normal, shrunk, with_channels
from tests.data.pictures.makers import encoded, noise, png_header, smooth


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_header_says_what_decoding_finds(kind, channels):
    data = encoded(smooth(20, 31, channels), kind)
    found = header(data, "x")
    pixels = decode(data, "x")
    assert (found.height, found.width, found.channels) == pixels.shape
    assert pixels.shape[:2] == (20, 31)
    assert found.kind == {"PNG": "png", "JPEG": "jpeg"}.get(kind, "other")
    if kind not in ("GIF", "WEBP"):
        assert pixels.shape[-1] == channels
        assert np.abs(pixels.astype(int) - smooth(20, 31, channels)).max() <= (12 if kind == "JPEG" else 0)


def test_png_is_exact_for_every_number_of_channels():
    for shape in ((5, 7, 1), (5, 7, 3), (5, 7, 4), (5, 7)):
        pixels = noise(*shape)
        assert np.array_equal(decode(encode(pixels), "x", 4 if shape[-1] == 4 else None).squeeze(), pixels.squeeze())


def test_what_is_transparent_becomes_white_unless_opacity_is_wanted():
    pixels = noise(6, 6, 4)
    pixels[..., 3] = 255
    pixels[:3, ..., 3] = 0
    data = encoded(pixels)
    found = decode(data, "x")
    assert (found[:3] == 255).all()
    assert np.array_equal(found[3:], pixels[3:, :, :3])
    assert np.array_equal(decode(data, "x", channels=4), pixels)
    stored, kept = normal(data, "x", None, None)
    assert np.array_equal(decode(stored, "x"), found)
    assert (kept.channels, kept.plain) == (3, True)
    stored, kept = normal(data, "x", 4, None)
    assert np.array_equal(decode(stored, "x", 4), pixels)
    assert kept.channels == 4


def test_pictures_are_turned_as_their_exif_demands():
    pixels = smooth(8, 40)
    turn = Image.Exif()
    turn[0x0112] = 6  # shown a quarter turn clockwise
    data = encoded(pixels, "JPEG", exif=turn, quality=95)
    assert (header(data, "x").height, header(data, "x").width) == (40, 8)
    expected = np.rot90(pixels, -1).astype(int)
    stored, found = normal(data, "x", None, None)
    assert found.plain
    for upright in (decode(data, "x"), decode(stored, "x")):
        assert np.abs(upright - expected).mean() < 6
    turn[0x0112] = 1
    upright = encoded(pixels, "JPEG", exif=turn)
    assert normal(upright, "x", None, None)[0] is upright


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(turn):
    pixels, exif = smooth(35, 61), Image.Exif()
    exif[0x0112] = turn
    data = encoded(pixels, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data, "x"), expected)
    assert np.array_equal(decode(normal(data, "x", None, None)[0], "x"), expected)
    assert np.abs(decode(data, "x", side=7).astype(int) - fit(expected, 7)).max() <= 2
    assert decode(encoded(pixels, "JPEG", exif=exif), "x", side=7).shape == ((7, 12, 3) if turn < 5 else (12, 7, 3))


def test_sixteen_bits_palettes_and_cmyk_become_plain():
    deep = Image.fromarray((smooth(8, 8, 1)[..., 0].astype(np.uint16) << 8) | 7)
    assert np.array_equal(decode(encoded(deep), "x"), smooth(8, 8, 1))
    palette = Image.fromarray(smooth(8, 8)).quantize(200)
    cmyk = Image.fromarray(smooth(16, 16)).convert("CMYK")
    for data, kind in ((encoded(deep), "png"), (encoded(palette), "png"), (encoded(cmyk, "JPEG"), "jpeg")):
        assert not header(data, "x").plain
        stored, found = normal(data, "x", None, None)
        assert (found.plain, found.kind) == (True, kind)
        assert np.abs(decode(stored, "x").astype(int) - decode(data, "x")).max() <= 16


def test_plain_files_are_kept_to_the_byte():
    for kind in ("PNG", "JPEG"):
        for channels in (1, 3):
            data = encoded(noise(30, 20, channels), kind)
            assert normal(data, "x", None, None)[0] is data
            assert normal(data, "x", None, 20)[0] is data


def test_the_shorter_side_is_brought_down():
    for kind in ("PNG", "JPEG", "BMP"):
        stored, found = normal(encoded(smooth(90, 60), kind), "x", None, 20)
        assert (found.height, found.width, found.kind) == (30, 20, "jpeg" if kind == "JPEG" else "png")
        assert np.abs(decode(stored, "x").astype(int) - smooth(30, 20)).max() < 16


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (65, 33)])
@pytest.mark.parametrize("side", [8, 33, 80])
def test_pixels_are_brought_down_whole_and_never_enlarged(size, side):
    """A gradient resized is a gradient; a JPEG decoded at a fraction gives the same as all of it."""
    pixels = smooth(*size)
    height, width = (round(length * min(1, side / min(size))) for length in size)
    assert shrunk(*size, side) == (height, width)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    for found, most in (
        (fit(pixels, side), 2),
        (decode(encoded(pixels), "x", side=side), 2),
        (decode(encoded(pixels, "JPEG", quality=95), "x", side=side), 16),
        (decode(normal(encoded(pixels), "x", None, side)[0], "x"), 2),
    ):
        assert found.shape == (height, width, 3)
        assert np.abs(found - expected).max() <= most


def test_channels_are_changed_as_pillow_does():
    colour = noise(6, 5, 3)
    grey = with_channels(colour, 1)
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert np.array_equal(with_channels(grey, 3), np.repeat(grey, 3, -1))
    assert (with_channels(colour, 4)[..., 3] == 255).all()


def bomb():
    """A PNG of 30,000 × 30,000 pixels in a megabyte."""
    data = zlib.compress(b"\0" * 1_000_000, 9)
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    head = png_header(30_000, 30_000)
    return head + struct.pack(">I", zlib.crc32(head[12:])) + chunk


BAD = {
    "text": b"this is no picture\n" * 20,
    "empty": b"",
    "half a jpeg": encoded(noise(64, 64, 3), "JPEG")[:2000],
    "half a png": encoded(noise(64, 64, 3))[:2000],
    "a flipped bit": (lambda d: d[:600] + bytes([d[600] ^ 1]) + d[601:])(encoded(noise(64, 64, 3))),
    "one pixel": encoded(noise(1, 1, 3)),
    "a bomb": bomb(),
    "a wide one": encoded(noise(70_000, 1100, 1), compress_level=1),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nquit\n",
    "floats": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_picture_is_named_and_never_decoded_beyond_bounds(what):
    for read in (lambda: normal(BAD[what], "here/x.png", None, None), lambda: decode(BAD[what], "here/x.png")):
        with pytest.raises(BadPicture, match=r"here/x\.png") as error:
            read()
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_truncation_is_noticed(kind):
    data = encoded(noise(40, 40, 3), kind, **({"progressive": True} if kind == "JPEG" else {}))
    for share in np.linspace(0.02, 0.95, 12):
        with pytest.raises(BadPicture):
            normal(data[: int(len(data) * share)], "x", None, None)
