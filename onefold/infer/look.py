"""What a model sees of a picture, whatever the picture comes as: the same part, size and channels as in training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from onefold.core.errors import UserError, missing_extra
from onefold.data.draws import Draws
from onefold.data.pictures.reader import PictureReader
from onefold.data.pictures.transforms.frame import scaled

Picture = str | Path | bytes | np.ndarray | Any  # a file, its content, UInt8[H, W] or [H, W, C], Pillow's images


def look(picture: Picture, reader: PictureReader) -> UInt8[Tensor, "C side side"]:
    """One picture as `reader` says. Raises UserError for what is no picture."""
    pixels = _pixels(picture, reader.channels)
    frame = reader.frame()
    nothing_random = Draws(0, 0, np.zeros(1, np.int64))
    top, left, height, width = frame.boxes(np.array([pixels.shape[:2]]), nothing_random)[0]
    part = np.ascontiguousarray(pixels[None, top : top + height, left : left + width])
    return torch.from_numpy(scaled(part, reader.side, frame.interpolation)[0].copy()).permute(2, 0, 1)


def _pixels(picture: Picture, channels: int) -> np.ndarray:
    """UInt8[H, W, channels]"""
    if isinstance(picture, str | Path):
        files = _files()
        return files.decode(files.read_file(Path(picture)), str(picture), channels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _files().decode(bytes(picture), "the picture", channels)
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise UserError(
            f"a picture is UInt8[H, W] or [H, W, C] with 1, 3 or 4 channels, not {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels if pixels.shape[2] == channels else _files().with_channels(np.ascontiguousarray(pixels), channels)


def _files() -> Any:
    """The module that reads files and changes colours; only it needs Pillow."""
    try:
        from onefold.data.pictures import files
    except ImportError:
        raise missing_extra("pillow", "vision", "looking at pictures") from None
    return files
