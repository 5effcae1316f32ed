"""What a published format of a picture model is, and what its readers share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.interop.families.family import Keys
from onefold.interop.names import Names

Library = Literal["huggingface", "timm"]


@dataclass(frozen=True)
class Format:
    """One architecture in one library's files: its config both ways, and its names.

    `name`: Hugging Face's model_type, or the family of timm's architectures. `fits` says whether a config.json is of
    this format. `read` gets timm's settings as `timm_settings` lays them out. `write` gives the keys of config.json.
    """

    library: Library
    name: str
    kind: str  # of our config
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Keys], Config]
    write: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], Names]


def of_type(name: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a config.json of Hugging Face has this model_type."""
    return lambda data: data.get("model_type") == name


def square(keys: Keys, name: str, default: int) -> int:
    """A setting that may be a number or a pair of equal ones."""
    value = keys.get(name, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{keys.where}: {name} must be a whole number or two equal ones, not {value!r}")
    return value


def classes(keys: Keys) -> int:
    """How many classes a Hugging Face model tells apart; 0 for one without a classifier."""
    architectures = keys.get("architectures") or []
    if architectures and not any("ForImageClassification" in name for name in architectures):
        return 0
    labels = keys.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else int(keys.get("num_labels", 2))


def timm_settings(data: Mapping[str, Any], where: str) -> Keys:
    """A timm config.json laid out flat: what its model is called with, and what its pretrained_cfg says of pictures."""
    given, arguments = data.get("pretrained_cfg") or {}, data.get("model_args") or {}
    if not isinstance(given, Mapping) or not isinstance(arguments, Mapping):
        raise UserError(f"{where}: pretrained_cfg and model_args must be JSON objects")
    channels, side = 3, 224
    size = given.get("input_size")
    if isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) for n in size):
        channels, side = size[0], size[1]
    flat = {
        **{"in_chans": channels, "img_size": side, "architecture": data.get("architecture")},
        **{"num_classes": data.get("num_classes", given.get("num_classes", 1000))},
        **arguments,
    }
    return Keys(flat, where)


def finish(keys: Keys) -> None:
    """Refuse arguments of a timm model that nobody asked for: they would make another model."""
    keys.get("drop_rate")  # of the classifier in training
    if unknown := [name for name in keys.data if name not in keys.used]:
        raise UserError(f"{keys.where}: model_args.{unknown[0]} is not supported")


def timm_folder(architecture: str, config: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A timm config.json."""
    return {
        "architecture": architecture,
        "num_classes": config.classes,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "input_size": [config.channels, config.image, config.image],
            "num_classes": config.classes,
        },
    }
