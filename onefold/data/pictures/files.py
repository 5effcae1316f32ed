"""Encoded pictures: what their header says before anything is decoded, their pixels, and pixels as files.

Pillow does the work, restricted to plain picture formats (it knows others that run programs). A picture's file is
bounded before it is read, its pixels before they are decoded.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Literal

import numpy as np
from PIL import Image

from onefold.core.errors import UserError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 64 << 20  # decoded: 192 MB in colour
MAX_CLIP_PIXELS = 4 << 30  # of all its frames, each of which must be gone through: 1,000 of 2,000 × 2,000
MAX_FRAMES = 10_000  # of a clip: finding the pages of a TIFF takes longer the more there are
MAX_BYTES = 256 << 20
MIN_SIDE = 4  # what is smaller is a tracking pixel or a mistake
ORIENTATION = 0x0112  # of EXIF: 1 is upright, 5 to 8 lie on their side
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEG_QUALITY = 95  # of those that have to be encoded anew
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")

Channels = Literal[1, 3, 4]


class BadPicture(UserError):
    """One picture that cannot be used; the message names it."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `kind`: "jpeg", "png" or "other"; size as seen, turned as EXIF demands.

    plain: any JPEG or PNG decoder gives these pixels: 8 bits, grey or RGB, upright, nothing transparent. frames: more
    than one where it is an animated GIF, PNG or WebP, or a TIFF of several pages; 2 where they were not counted.
    """

    height: int
    width: int
    channels: int
    kind: str
    plain: bool
    frames: int = 1


def read_file(path: Path) -> bytes:
    """A picture's file. Raises BadPicture when it is gone or far too large."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise BadPicture(f"{path} is no file")
        if status.st_size > MAX_BYTES:
            raise BadPicture(f"{path} has {status.st_size:,} bytes, more than the {MAX_BYTES:,} of the largest picture")
        return path.read_bytes()
    except OSError as error:
        raise BadPicture(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null byte in its name
        raise BadPicture(f"{str(path)!r} cannot be read: {error}") from None


def header(data: bytes | memoryview, name: str, count: bool = False) -> Header:
    """The header alone; nothing is decoded. Raises BadPicture naming `name`.

    count: all frames, which takes a look at each; a file that breaks off between two of them is bad then.
    """
    with _open(data, name) as image:
        width, height = image.size
        turned = _orientation(image)
        kind = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}.get(image.format or "", "other")
        plain = kind != "other" and image.mode in ("L", "RGB") and turned == 1 and "transparency" not in image.info
        size = (width, height) if turned >= 5 else (height, width)
        frames = _frames(image, data, name) if count else 1 + (kind != "jpeg" and getattr(image, "is_animated", False))
        return Header(*size, 1 if image.mode in GREY else 3, kind, plain, frames)


def decode(
    data: bytes | memoryview, name: str, channels: Channels | None = None, side: int | None = None
) -> np.ndarray:
    """UInt8[H, W, C], upright. Raises BadPicture naming `name` when the file is damaged.

    channels: 1 grey, 3 colour, 4 with opacity; None: grey where it is grey, else colour; what is transparent becomes
    white. side: what the shorter side is brought down to; a large JPEG is then decoded at a fraction of its size.
    """
    with _open(data, name) as image:
        return _pixels(image, name, channels, side)


def normal(data: bytes, name: str, channels: Channels | None, shorter: int | None) -> tuple[bytes, Header]:
    """(a JPEG or plain PNG of the picture, its header): the very same bytes where they already are one.

    shorter: what its shorter side is brought down to. What came as JPEG is encoded anew as JPEG, everything else as
    PNG. Either way it was decoded once, so that a damaged file raises BadPicture.
    """
    found = header(data, name)
    if shrunk(found.height, found.width, shorter) == (found.height, found.width) and found.plain and channels != 4:
        with _open(data, name) as image:
            image.draft(None, (1, 1))  # the smallest scale: all of a JPEG is read, little of it computed
            _load(image, name)
        return data, found
    with _open(data, name) as image:
        pixels = _pixels(image, name, channels, shorter)
    encoded = encode(pixels, "jpeg" if found.kind == "jpeg" and pixels.shape[-1] != 4 else "png")
    return encoded, header(encoded, name) if pixels.shape[-1] != 4 else Header(*pixels.shape, "png", False)


def clip(data: bytes, name: str, channels: Channels, side: int | None, most: int) -> tuple[list[bytes], Header]:
    """(its frames as PNG, the first one's header); `most` of them, evenly spread over all, where there are more.

    What has one frame only is a `normal` picture. The pixels of one frame are in memory at a time. Raises BadPicture
    for pages of different sizes, too.
    """
    with _open(data, name) as image:
        count, size, encoded = _frames(image, data, name), image.size, []
        if count == 1:
            still, found = normal(data, name, channels if channels == 4 else None, side)
            return [still], found
        if count * size[0] * size[1] > MAX_CLIP_PIXELS:
            said = f"{name} has {count:,} frames of {size[0]:,} × {size[1]:,} pixels"
            raise BadPicture(f"{said}, more than {MAX_CLIP_PIXELS:,} in all: make it shorter or smaller first")
        for number in spread(count, most):
            try:
                image.seek(number)
            except Exception as error:
                raise BadPicture(f"{name} is damaged in frame {number}: {error}") from None
            if image.size != size:
                (width, height), (wide, tall) = image.size, size
                raise BadPicture(f"{name} has pages of {wide} × {tall} and of {width} × {height} pixels")
            pixels = _pixels(image, name, channels, side)
            encoded.append(encode(pixels))
    height, width = pixels.shape[:2]  # of the last, which is as large as the others
    return encoded, Header(height, width, channels, "png", channels != 4, count)


def spread(count: int, most: int) -> list[int]:
    """The places 0…count - 1, or `most` of them from the first to the last where there are more."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def encode(pixels: np.ndarray, kind: Literal["jpeg", "png"] = "png") -> bytes:
    """UInt8[H, W, C] or [H, W] as a file: PNG without loss, JPEG small."""
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, "PNG", compress_level=3)  # the higher levels take several times as long for some per cent
    return buffer.getvalue()


def shrunk(height: int, width: int, side: int | None) -> tuple[int, int]:
    """(height, width) once the shorter side is brought down to `side`; pictures are never enlarged."""
    shorter = min(height, width)
    if side is None or shorter <= side:
        return height, width
    return round(height * side / shorter), round(width * side / shorter)


def fit(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """UInt8[H, W, C] at its `shrunk` size."""
    size = shrunk(*pixels.shape[:2], side)
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _array(image.resize(size[::-1], Image.Resampling.BICUBIC))  # Pillow's filters widen where it shrinks


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """UInt8[H, W, C] as [H, W, channels]: grey repeated, colour as Pillow's luma, opacity added."""
    if pixels.shape[-1] == channels:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _array(_in_channels(image, channels))


def _open(data: bytes | memoryview, name: str) -> Image.Image:
    """A picture whose header was read. Raises BadPicture, also for sizes that are not worth decoding."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture(f"{name} has far more than {MAX_PIXELS:,} pixels: make it smaller first") from None
    except Exception:  # Pillow raises whatever its parser stumbled on
        known = ", ".join(FORMATS)
        raise BadPicture(f"{name} is no readable picture ({known})" if len(data) else f"{name} is empty") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{name} has {width:,} × {height:,} pixels, more than {MAX_PIXELS:,}: make it smaller first")
    if min(width, height) < MIN_SIDE:
        raise BadPicture(f"{name} has only {width} × {height} pixels")
    if image.mode == "F":
        raise BadPicture(f"{name} holds floating-point numbers, whose range nobody knows: convert it to 8 bits first")
    return image


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception as error:
        raise BadPicture(f"{name} is damaged: {error}") from None


def _pixels(image: Image.Image, name: str, channels: Channels | None, side: int | None) -> np.ndarray:
    """Of an opened picture, UInt8[H, W, C] at its `shrunk` size."""
    width, height = image.size  # exactly, where a JPEG decoded at 1/8 ends with a part of a pixel
    size = shrunk(height, width, side)[::-1]
    if side is not None and size != image.size:
        wanted = [-(-length * side // min(image.size)) for length in image.size]
        if scaled := image.draft(None, (wanted[0], wanted[1])):  # at the smallest scale that is at least this large
            width, height = scaled[1][2:]
    grey, turned = image.mode in GREY, _orientation(image)
    _load(image, name)
    if image.mode.startswith("I"):  # 16 bits
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep.clip(0, 65535) >> 8).astype(np.uint8))
    image = _in_channels(image, channels or (1 if grey else 3))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, box=(0, 0, width, height))
    return _array(image.transpose(TURNS[turned]) if turned in TURNS else image)


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    if channels == 4:
        return image.convert("RGBA")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _frames(image: Image.Image, data: bytes | memoryview, name: str) -> int:
    """How many there are. Raises BadPicture where they end before the file says so, or are too many."""
    if image.format in ("JPEG", "MPO"):  # what some cameras add are views and previews of the same
        return 1
    if image.format == "GIF":
        count = _gif_frames(data, name)
    elif image.format in ("PNG", "WEBP"):  # whose headers tell
        count = getattr(image, "n_frames", 1)
    else:
        count = _pages(image, name)
    if count > MAX_FRAMES:
        raise BadPicture(f"{name} has more than {MAX_FRAMES:,} frames: make several of it first")
    return count


def _pages(image: Image.Image, name: str) -> int:
    """Found by going to each, up to one too many."""
    count = 1
    try:
        while count <= MAX_FRAMES:
            image.seek(count)
            count += 1
    except EOFError:
        pass
    except Exception as error:  # Pillow raises whatever its parser stumbled on
        raise BadPicture(f"{name} is damaged in frame {count}: {error}") from None
    image.seek(0)
    return count


def _gif_frames(data: bytes | memoryview, name: str) -> int:
    """Counted from block to block up to the trailer, or one too many; nothing is decoded.

    Format: CompuServe's GIF89a specification. Pillow takes the end of a file for its trailer.
    """
    count, place = 0, 13 + _gif_colours(data[10])
    try:
        while (block := data[place]) != 0x3B and count <= MAX_FRAMES:
            if block == 0x2C:  # an image: its place and size, perhaps colours, and the size of its codes
                count, place = count + 1, place + 11 + _gif_colours(data[place + 9])
            elif block == 0x21:  # an extension
                place += 2
            else:
                place += 1  # as Pillow does
                continue
            while size := data[place]:
                place += 1 + size
            place += 1
    except IndexError:
        raise BadPicture(f"{name} is truncated, in frame {max(0, count - 1)} or after it") from None
    return count


def _gif_colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _orientation(image: Image.Image) -> int:
    """EXIF's, of a picture that is not loaded yet."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture, and swallow what is wrong with it, to look behind its pixels
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)
