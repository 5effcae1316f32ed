"""How published picture models want their pictures, both ways: preprocessor_config.json, or timm's pretrained_cfg."""

import math
from collections.abc import Mapping
from typing import Any

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.pictures.reader import PictureReader

HALF = (0.5,)
BICUBIC = 3  # of Pillow; 2 is bilinear
PREPROCESSOR = "preprocessor_config.json"


def read_huggingface(data: Mapping[str, Any], preprocessor: Mapping[str, Any], config: Config) -> PictureReader | None:
    """From config.json (names of classes) and preprocessor_config.json; None without the latter.

    Raises UserError for a scale that is none.
    """
    if not preprocessor:
        return None
    said = str(preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type") or "")
    size, crop = preprocessor.get("size"), preprocessor.get("crop_size")
    side, resize = _size(size, config.image), None
    if said.startswith("ConvNext") or (not said and config.kind == "convnext"):
        squeeze = side >= 384  # below it, the middle of a somewhat larger picture
        if not squeeze:
            resize = int(side / _share(preprocessor.get("crop_pct"), 224 / 256, "crop_pct"))
    else:
        # A side alone is that of the shorter one for CLIP's, of a square for others.
        square = preprocessor.get("default_to_square", not said.startswith("CLIP"))
        squeeze = "shortest_edge" not in size if isinstance(size, Mapping) else bool(square)
        if preprocessor.get("do_center_crop", said.startswith("CLIP")) and crop is not None:
            side, resize = _size(crop, config.image), side
    normalised = preprocessor.get("do_normalize", True)
    mean, std = preprocessor.get("image_mean") or HALF, preprocessor.get("image_std") or HALF
    return PictureReader(
        side=side,
        resize=resize if resize != side else None,
        squeeze=squeeze,
        channels=config.channels,
        mean=_numbers(mean, "image_mean") if normalised else (0.0,),
        std=_numbers(std, "image_std", least=0) if normalised else (1.0,),
        interpolation="bicubic" if preprocessor.get("resample") == BICUBIC else "bilinear",
        classes=_names(data.get("id2label"), getattr(config, "classes", 0)),
    )


def write_huggingface(reader: PictureReader) -> dict[str, Any]:
    """The content of preprocessor_config.json, under the name of a processor that does just this."""
    resize = max(reader.side, reader.resize or reader.side)
    square, crop = {"height": resize, "width": resize}, {"height": reader.side, "width": reader.side}
    size: dict[str, Any]
    if not reader.squeeze:
        size = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": resize}}
        size |= {"do_convert_rgb": reader.channels == 3, "default_to_square": False}
    else:
        size = {"image_processor_type": "ViTImageProcessor" if resize == reader.side else "DeiTImageProcessor"}
        size |= {"size": square}
    if not reader.squeeze or resize != reader.side:
        size |= {"do_center_crop": True, "crop_size": crop}
    return {
        **size,
        **{"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
        "resample": BICUBIC if reader.interpolation == "bicubic" else 2,
        "image_mean": _each(reader.mean, reader.channels),
        "image_std": _each(reader.std, reader.channels),
    }


def read_timm(data: Mapping[str, Any], config: Config) -> PictureReader | None:
    """From a timm config.json; None where it does not say. Raises UserError for a scale that is none.

    `crop_mode` is squash, or center, as which timm reads all that it does not know. Its third, border, which pads a
    picture to a square, becomes center with a line that says so: no model that timm lists has it.
    """
    given = data.get("pretrained_cfg") or {}
    if not given.get("mean") or not given.get("std"):
        return None
    if given.get("crop_mode") == "border":
        say("pretrained_cfg.crop_mode=border is not known here: pictures are cut to their middle instead of padded")
    resize = math.floor(config.image / _share(given.get("crop_pct"), 0.875, "pretrained_cfg.crop_pct"))
    return PictureReader(
        side=config.image,
        resize=resize if resize != config.image else None,
        squeeze=given.get("crop_mode") == "squash",
        channels=config.channels,
        mean=_numbers(given["mean"], "pretrained_cfg.mean"),
        std=_numbers(given["std"], "pretrained_cfg.std", least=0),
        interpolation="bicubic" if given.get("interpolation") == "bicubic" else "bilinear",
        classes=_names(data.get("label_names"), config.classes),
    )


def write_timm(reader: PictureReader) -> dict[str, Any]:
    """What goes into pretrained_cfg."""
    resize = max(reader.side, reader.resize or reader.side)
    share = reader.side / resize
    return {
        "mean": _each(reader.mean, reader.channels),
        "std": _each(reader.std, reader.channels),
        # Rounded so that dividing by it gives no less than `resize`, which readers round down.
        "crop_pct": share if reader.side / share >= resize else math.nextafter(share, 0),
        "crop_mode": "squash" if reader.squeeze else "center",
        "interpolation": reader.interpolation,
    }


def _share(value: Any, otherwise: float, name: str) -> float:
    """What is cropped of a side; where a file has none or 0, the library's own."""
    if not value:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.01 <= value < math.inf:
        raise UserError(f"{name} must be a number from 0.01 up, not {value!r}")
    return value


def _numbers(values: Any, name: str, least: float = -math.inf) -> tuple[float, ...]:
    """One for each channel, or one for all, each above `least`."""
    given = values if isinstance(values, list | tuple) else [values]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and least < n < math.inf for n in given):
        above = "" if least == -math.inf else f" above {least:g}"
        raise UserError(f"{name} must be numbers{above}, not {values!r}")
    return tuple(given)


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
