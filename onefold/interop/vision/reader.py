"""How published picture models want their pictures, both ways: preprocessor_config.json, or timm's pretrained_cfg."""

import math
from collections.abc import Mapping
from typing import Any

from onefold.core.config import Config
from onefold.data.picture_reader import PictureReader

HALF = (0.5,)
BICUBIC = 3  # of Pillow; 2 is bilinear
PREPROCESSOR = "preprocessor_config.json"


def read_huggingface(data: Mapping[str, Any], preprocessor: Mapping[str, Any], config: Config) -> PictureReader | None:
    """From config.json (names of classes) and preprocessor_config.json; None without the latter."""
    if not preprocessor:
        return None
    side, resize = _size(preprocessor.get("size"), config.image), None
    crop = preprocessor.get("crop_size")
    if preprocessor.get("do_center_crop") and crop is not None:
        side, resize = _size(crop, config.image), side
    elif (share := preprocessor.get("crop_pct")) and side < 384:  # ConvNeXt's: from there on pictures are squashed
        resize = int(side / share)
    normalised = preprocessor.get("do_normalize", True)
    return PictureReader(
        side=side,
        resize=resize if resize != side else None,
        channels=config.channels,
        mean=tuple(preprocessor.get("image_mean") or HALF) if normalised else (0.0,),
        std=tuple(preprocessor.get("image_std") or HALF) if normalised else (1.0,),
        interpolation="bicubic" if preprocessor.get("resample") == BICUBIC else "bilinear",
        classes=_names(data.get("id2label"), getattr(config, "classes", 0)),
    )


def write_huggingface(reader: PictureReader) -> dict[str, Any]:
    """The content of preprocessor_config.json."""
    squeezed = reader.resize is None or reader.resize == reader.side
    if squeezed:
        size = {"image_processor_type": "ViTImageProcessor", "size": {"height": reader.side, "width": reader.side}}
    else:
        size = {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": reader.side},
            "crop_pct": reader.side / reader.resize,
        }
    return {
        **size,
        **{"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
        "resample": BICUBIC if reader.interpolation == "bicubic" else 2,
        "image_mean": _each(reader.mean, reader.channels),
        "image_std": _each(reader.std, reader.channels),
    }


def read_timm(data: Mapping[str, Any], config: Config) -> PictureReader | None:
    """From a timm config.json; None where it does not say."""
    given = data.get("pretrained_cfg") or {}
    if "mean" not in given or "std" not in given:
        return None
    resize = math.floor(config.image / given.get("crop_pct", 0.875))
    return PictureReader(
        side=config.image,
        resize=resize if resize != config.image else None,
        channels=config.channels,
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        interpolation="bicubic" if given.get("interpolation") == "bicubic" else "bilinear",
        classes=_names(data.get("label_names"), config.classes),
    )


def write_timm(reader: PictureReader) -> dict[str, Any]:
    """What goes into pretrained_cfg."""
    return {
        "mean": _each(reader.mean, reader.channels),
        "std": _each(reader.std, reader.channels),
        "crop_pct": reader.side / (reader.resize or reader.side),
        "interpolation": reader.interpolation,
    }


def _size(size: Any, otherwise: int) -> int:
    """Pixels a side in any of the ways in which files say it."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, list | tuple) and size:
        size = size[0]
    return size if isinstance(size, int) and size > 0 else otherwise


def _names(labels: Any, count: int) -> tuple[str, ...]:
    """The names of all classes, in order; none where a file has none or names that say nothing."""
    if isinstance(labels, Mapping):
        labels = [labels.get(str(i), labels.get(i)) for i in range(count)]
    if not isinstance(labels, list | tuple) or len(labels) != count or not all(isinstance(n, str) for n in labels):
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(labels)) else tuple(labels)


def _each(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) * channels if len(values) == 1 else list(values)
