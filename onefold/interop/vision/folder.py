"""Folders of picture models as Hugging Face transformers and timm publish them, read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from onefold.core.config import Config, differences, explain
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.core.progress import say
from onefold.data.pictures.reader import PictureReader
from onefold.interop.families.family import Keys
from onefold.interop.huggingface import open_weights, read_json
from onefold.interop.loaded import Loaded, dtype_named, fill, name_of
from onefold.interop.table import own_weights
from onefold.interop.tensors import write_safetensors
from onefold.interop.vision import convnets, reader, transformers
from onefold.interop.vision.format import Format, Library, timm_settings

FORMATS: tuple[Format, ...] = (*transformers.FORMATS, *convnets.FORMATS)


def knows(data: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a picture model which can be read here."""
    return any(format.fits(data) for format in FORMATS)


def load_vision(folder: Path, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype | None" = None) -> Loaded:
    """Read a folder of `config.json` and weights. Its `PictureReader` is None where the files do not say it.

    Raises UserError for other architectures, settings without a counterpart here, and missing, unknown or damaged
    weights.
    """
    where, path = str(folder), folder / "config.json"
    data = read_json(path)
    format, config, unknown = read_config(data, str(path))
    if unknown:
        say(f"{path}: settings not understood and left out: {', '.join(unknown)}")
    try:
        if format.library == "timm":
            processor = reader.read_timm(data, config)
        else:
            path = folder / reader.PREPROCESSOR
            processor = reader.read_huggingface(data, read_json(path, optional=True), config)
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    source, names = open_weights(folder), format.names(config)
    model = fill(config, lambda ours: names.read(ours, source, where), torch.device(device), dtype, where)
    stored = data.get("dtype") or data.get("torch_dtype")
    card = {"source": where, "format": format.library, "family": format.name, "dtype": stored}
    return Loaded(config, model, processor, card)


def save_vision(
    folder: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None, library: Library | None = None
) -> None:
    """Write a picture model as a folder that transformers or timm opens.

    `library`: None takes the one that the model was read from, else transformers where it knows the model, else timm.
    `dtype`: None keeps the model's. Raises UserError when no published format can say this model.
    """
    came_from = loaded.card.get("format")
    prefer = library or (came_from if came_from in ("huggingface", "timm") else "huggingface")
    format, written = write_config(loaded.config, prefer, only=library is not None)
    weights = format.names(loaded.config).write(own_weights(loaded.model))
    processor = loaded.processor if isinstance(loaded.processor, PictureReader) else None
    with atomic_folder(Path(folder)) as temporary:
        if format.library == "timm":
            if processor:
                written["pretrained_cfg"] |= reader.write_timm(processor)
                written |= {"label_names": list(processor.classes)} if processor.classes else {}
        else:
            kind = dtype_named(dtype) or next(iter(weights.values())).dtype
            written["torch_dtype"] = name_of(kind)
            if not getattr(loaded.config, "classes", 0):
                prefix = format.names(loaded.config).prefix
                weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            if processor:
                content = json.dumps(reader.write_huggingface(processor), indent=2)
                (temporary / reader.PREPROCESSOR).write_text(content + "\n")
            if processor and processor.classes:
                written["id2label"] = {str(i): name for i, name in enumerate(processor.classes)}
                written["label2id"] = {name: i for i, name in enumerate(processor.classes)}
        (temporary / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        write_safetensors(temporary, weights, dtype_named(dtype))


def read_config(data: Mapping[str, Any], where: str) -> tuple[Format, Config, list[str]]:
    """The format and our config of a config.json, and the keys in it that are not understood."""
    format = next((format for format in FORMATS if format.fits(data)), None)
    if format is None:
        shown = data.get("model_type") or data.get("architecture") or "nothing"
        known = ", ".join(f"{format.name} ({format.library})" for format in FORMATS)
        raise UserError(f"{where}: the architecture {shown!r} is not supported; supported are {known}")
    keys = timm_settings(data, where) if format.library == "timm" else Keys(data, where)
    try:
        return format, format.read(keys), keys.unknown() if format.library == "huggingface" else []
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, data)}") from None
    except (TypeError, AttributeError):
        raise UserError(f"{where}: a setting has the wrong type for {format.name}") from None


def write_config(config: Config, prefer: Library, only: bool = False) -> tuple[Format, dict[str, Any]]:
    """A format (of the library `prefer` before others, or of it `only`) that can say exactly this, and its config.json.

    Found by writing and reading back. Raises UserError naming what the nearest cannot say.
    """
    fitting = [format for format in FORMATS if format.kind == config.kind]
    order = [f for f in fitting if f.library == prefer] + [f for f in fitting if f.library != prefer and not only]
    refused = f"no published format has models of the kind {config.kind}"
    for format in order:
        try:
            written = format.write(config)
            if format.library == "huggingface":
                written = {"model_type": format.name, **written}
            _, said, _ = read_config(written, format.name)
        except (AttributeError, KeyError, UserError, ValueError) as error:
            refused = f"{format.name} of {format.library} cannot say this model ({error})"
            continue
        lost = differences(_computed(config), _computed(said))
        if not lost:
            return format, written
        path, (ours, theirs) = next(iter(lost.items()))
        refused = f"{format.name} of {format.library} cannot say this model: {path} is {ours}, not {theirs}"
    raise UserError(f"{refused}; save it with format='onefold'")


def _computed(config: Config) -> dict[str, Any]:
    """What a config computes once it is trained."""
    plain = config.to_dict()
    for part in (plain, plain.get("encoder", {})):
        part |= {"drop_path": None, "dropout": None}
    return plain
