"""Folders as Hugging Face publishes them: config.json, safetensors (one file or shards), tokenizer, chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.core.progress import say
from onefold.interop.config_json import family_of, read_config, says_family, write_config
from onefold.interop.encoders import class_names
from onefold.interop.loaded import Loaded, dtype_named, fill, name_of
from onefold.interop.table import own_weights
from onefold.interop.tensors import (
    SafetensorFiles,
    check_written,
    find_safetensors,
    read_index,
    read_pickled,
    write_safetensors,
)
from onefold.interop.tokens import check_vocabulary, load_tokenizer, save_tokenizer, token_ids


def load_folder(folder: Path, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype | None" = None) -> Loaded:
    """Read a Hugging Face folder of one of the known families.

    Raises UserError for other architectures, settings without a counterpart here, missing, unknown or damaged weights,
    and a tokenizer that is larger than the vocabulary.
    """
    where = str(folder)
    data = read_json(folder / "config.json")
    if says_family(data):
        family_of(data, f"{folder / 'config.json'}")  # refused before its weights are looked for
    source = open_weights(folder)
    family, config, unknown = read_config(data, f"{folder / 'config.json'}", source)
    if unknown:
        say(f"{folder / 'config.json'}: settings not understood and left out: {', '.join(unknown)}")
    generation = read_json(folder / "generation_config.json", optional=True)
    tokenizer = load_tokenizer(folder, data)
    check_vocabulary(tokenizer, config, where)
    model = fill(
        config,
        lambda names: family.table.read(config, names, source, where),
        torch.device(device),
        dtype,
        where,
    )
    stored = data.get("dtype") or data.get("torch_dtype")
    card = {"source": where, "format": "huggingface", "family": family.name, "dtype": stored, "generation": generation}
    if names := class_names(data, config):
        card["classes"] = names
    if pooling := read_json(folder / "1_Pooling" / "config.json", optional=True):  # of sentence-transformers
        card["pooling"] = "first" if pooling.get("pooling_mode_cls_token") else "mean"
    return Loaded(config, model, tokenizer, card)


def save_folder(folder: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None) -> None:
    """Write a model as a Hugging Face folder that transformers, vLLM and llama.cpp's converter open.

    `dtype`: None keeps the model's. Raises UserError when no published family can say this model.
    """
    family, written = write_config(loaded.config, prefer=loaded.card.get("family"))
    check_vocabulary(loaded.tokenizer, loaded.config, str(folder))
    weights = family.table.write(loaded.config, own_weights(loaded.model))
    kind = dtype_named(dtype) or next(iter(weights.values())).dtype
    tokenizer = loaded.tokenizer
    tokens = token_ids(tokenizer) if tokenizer else {}
    counted, pad = written.get("pad_token_id"), tokens.get("pad_token_id")
    if None not in (counted, pad) and counted != pad:
        raise UserError(
            f"{family.name} counts positions from its padding token, which is {counted} there and {pad} in the "
            "tokenizer; save it with format='onefold'"
        )
    if (names := loaded.card.get("classes")) and "id2label" in written and len(names) == len(written["id2label"]):
        written["id2label"] = {str(i): name for i, name in enumerate(names)}
        written["label2id"] = {name: i for i, name in enumerate(names)}
    with atomic_folder(Path(folder)) as temporary:
        content = {**tokens, **written, "torch_dtype": name_of(kind)}
        (temporary / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        write_safetensors(temporary, weights, dtype_named(dtype))
        if tokenizer is not None:
            save_tokenizer(temporary, tokenizer, loaded.card.get("generation"))


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """A folder's weights by their published names, whichever way they are stored."""
    files = find_safetensors(folder)
    if files is not None:
        check_written(folder)
        return SafetensorFiles(files)
    if (index := folder / "pytorch_model.bin.index.json").is_file():
        return {name: tensor for path in read_index(index) for name, tensor in read_pickled(path).items()}
    if (file := folder / "pytorch_model.bin").is_file():
        return read_pickled(file)
    raise UserError(f"{folder} has no weights: neither model.safetensors (nor its index) nor pytorch_model.bin")


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object from disk; {} for one that may be missing."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object")
    return data
