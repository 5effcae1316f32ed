"""Small pictures for tests."""

import io
import struct

import numpy as np
from PIL import Image


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(height, width, channels=3):
    """Slow gradients, which JPEG keeps nearly as they are."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    """The beginning of a PNG that claims this size."""
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    )


def class_folders(root, classes=("cat", "dog"), each=6, size=(9, 7, 3), suffix=".png"):
    """root/<class>/<number>.png of noise, every picture another one."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for j in range(each):
            kind = "JPEG" if suffix == ".jpg" else "PNG"
            (root / name / f"{j}{suffix}").write_bytes(encoded(noise(*size, seed=100 * i + j), kind))
    return root


def idx(values):
    """An array of bytes in the IDX format."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
