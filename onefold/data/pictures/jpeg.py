"""From the bytes of a picture's file to the square that a model sees, decoding no more than that takes.

A JPEG is decoded through libjpeg-turbo (simplejpeg) at the smallest scale at which the part to cut is still as large as
the result: at an eighth, for instance, only one coefficient of every block is computed. Other files go through Pillow.
"""

import numpy as np
import simplejpeg

from onefold.data.pictures.files import BadPicture, Channels, decode, header
from onefold.data.pictures.transforms.frame import Interpolation, scaled

START = b"\xff\xd8"  # of every JPEG
# Scales of five eighths and more take longer than the full size, for which there is vector code.
LARGEST_REDUCED = 0.5


def cut_out(
    data: bytes | memoryview,
    name: str,
    size: np.ndarray,
    box: np.ndarray,
    side: int,
    channels: Channels,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """UInt8[side, side, channels]: the part `box` (top, left, height, width) of a picture of `size` (height, width).

    Raises BadPicture naming `name` when the file cannot be decoded, or says that it has another size.
    """
    top, left, height, width = (int(x) for x in box)
    if bytes(data[:2]) == START and channels in (1, 3):
        pixels = _jpeg(data, name, size, side / min(height, width), channels)
    else:
        if (found := header(data, name)) and (found.height, found.width) != (size[0], size[1]):
            raise _other_size(name, found.height, found.width, size)
        pixels = decode(data, name, channels)
    if pixels.shape[:2] != (size[0], size[1]):  # the box on the smaller picture, no pixel of it lost
        down, right = pixels.shape[0] / size[0], pixels.shape[1] / size[1]
        bottom, end = round((top + height) * down), round((left + width) * right)
        top, left = round(top * down), round(left * right)
        height, width = max(1, bottom - top), max(1, end - left)
    return scaled(pixels[None, top : top + height, left : left + width], side, interpolation)[0]


def _jpeg(data: bytes | memoryview, name: str, size: np.ndarray, share: float, channels: int) -> np.ndarray:
    """The whole picture, at `share` of its size or larger. A damaged header could demand any amount of memory."""
    smallest = np.ceil(np.asarray(size) * share).astype(int) if share <= LARGEST_REDUCED else (0, 0)
    colours = "RGB" if channels == 3 else "GRAY"
    try:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        except KeyError:  # subsampling that it has no name for, but decodes; or no picture
            found = header(data, name)
            height, width = found.height, found.width
        if (height, width) != (size[0], size[1]):
            raise _other_size(name, height, width, size)
        # strict=False: what decoders only warn of, say some bytes too many at the end, is no reason to stop a training.
        return simplejpeg.decode_jpeg(
            data, colours, min_height=int(smallest[0]), min_width=int(smallest[1]), strict=False
        )
    except ValueError as error:
        raise BadPicture(f"{name} is damaged: {error}") from None


def _other_size(name: str, height: int, width: int, size: np.ndarray) -> BadPicture:
    return BadPicture(
        f"{name} is damaged: it says that it has {width} × {height} pixels instead of {size[1]} × {size[0]}"
    )
