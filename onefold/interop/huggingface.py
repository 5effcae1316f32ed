"""Folders as Hugging Face publishes them: config.json, safetensors (one file or shards), tokenizer, chat template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.core.progress import say
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.families.config_json import family_of, read_config, says_family, write_config
from onefold.interop.families.encoders import class_names
from onefold.interop.families.family import Family
from onefold.interop.loaded import Arrived, Loaded, dtype_named, fill, name_of
from onefold.interop.table import own_weights
from onefold.interop.tensors import (
    SafetensorFiles,
    check_written,
    find_safetensors,
    read_index,
    read_pickled,
    write_safetensors,
)
from onefold.interop.tokenizers.tokens import check_vocabulary, load_tokenizer, save_tokenizer, token_ids

GENERATION = (
    *("bad_words_ids", "eos_token_id", "forced_bos_token_id", "length_penalty", "max_length", "min_length"),
    *("no_repeat_ngram_size", "num_beams"),
)


@dataclass(frozen=True)
class Published:
    """A folder of one of the known families, looked into: what the model is, and where its weights are."""

    folder: Path
    data: dict[str, Any]  # config.json
    family: Family
    config: Any
    source: Mapping[str, Tensor]
    tokenizer: Tokenizer | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises UserError for other architectures, settings without a counterpart here, missing weights, and a
        tokenizer that is larger than the vocabulary."""
        place = f"{folder / 'config.json'}"
        data = read_json(folder / "config.json")
        if says_family(data):
            family_of(data, place)  # refused before its weights are looked for
        source = open_weights(folder)
        family, config, unknown = read_config(data, place, source)
        if unknown:
            say(f"{place}: settings not understood and left out: {', '.join(unknown)}")
        tokenizer = load_tokenizer(folder, data)
        check_vocabulary(tokenizer, config, str(folder))
        return cls(folder, data, family, config, source, tokenizer)

    def weights(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        """The parameters `names` of our model. Raises UserError for missing and unknown ones."""
        return self.family.table.read(self.config, names, self.source, str(self.folder))

    def card(self) -> dict[str, Any]:
        """Where the model comes from."""
        return {
            "source": str(self.folder),
            "format": "huggingface",
            "family": self.family.name,
            "dtype": self.data.get("dtype") or self.data.get("torch_dtype"),
            "generation": self._generation(),
        }

    def _generation(self) -> dict[str, Any]:
        """How the model is to write: a file of its own, or among other settings in older encoder-decoders."""
        own = read_json(self.folder / "generation_config.json", optional=True)
        if own or not self.data.get("is_encoder_decoder"):
            return own
        return {name: self.data[name] for name in GENERATION if self.data.get(name) is not None}


def load_folder(
    folder: Path,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype | None" = None,
    arrived: Arrived | None = None,
) -> Loaded:
    """Read a Hugging Face folder of one of the known families.

    Raises UserError as `Published.open` does, and for missing, unknown or damaged weights.
    """
    published = Published.open(folder)
    model = fill(published.config, published.weights, torch.device(device), dtype, str(folder), arrived)
    card, names = published.card(), class_names(published.data, published.config)
    return Loaded(published.config, model, published.tokenizer, card | ({"classes": names} if names else {}))


def save_folder(folder: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None) -> None:
    """Write a model as a Hugging Face folder that transformers, vLLM and llama.cpp's converter open.

    `dtype`: None keeps the model's. Raises UserError when no published family can say this model.
    """
    with atomic_folder(Path(folder)) as temporary:
        write_folder(temporary, loaded, dtype)


def write_folder(folder: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None) -> None:
    """The same into a folder that the caller finishes."""
    family, written = write_config(loaded.config, prefer=loaded.card.get("family"))
    check_vocabulary(loaded.tokenizer, loaded.config, str(folder))
    weights = family.table.write(loaded.config, _in_units(own_weights(loaded.model), loaded.card.get("numbers")))
    kind = dtype_named(dtype) or next(iter(weights.values())).dtype
    tokenizer = loaded.tokenizer
    tokens = token_ids(tokenizer) if tokenizer else {}
    generation = dict(loaded.card.get("generation") or {})
    if tokenizer and loaded.config.kind == "seq2seq":
        start = {"decoder_start_token_id": tokenizer.decoder_start} | _set(written, "decoder_start_token_id")
        generation |= start | _set(written, "forced_bos_token_id")
        written = {**written, **tokens, **start}
    counted, pad = written.get("pad_token_id"), tokens.get("pad_token_id")
    if None not in (counted, pad) and counted != pad:
        raise UserError(
            f"{family.name} counts positions from its padding token, which is {counted} there and {pad} in the "
            "tokenizer; save it with format='onefold'"
        )
    if (names := loaded.card.get("classes")) and "id2label" in written and len(names) == len(written["id2label"]):
        written["id2label"] = {str(i): name for i, name in enumerate(names)}
        written["label2id"] = {name: i for i, name in enumerate(names)}
    content = {**tokens, **written, "torch_dtype": name_of(kind)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    write_safetensors(folder, weights, dtype_named(dtype))
    if tokenizer is not None:
        save_tokenizer(folder, tokenizer, generation)


def _set(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: settings[name]} if name in settings else {}


def _in_units(weights: Mapping[str, Tensor], numbers: Sequence[float] | None) -> Mapping[str, Tensor]:
    """Of a regression, with outputs as its data had them, since others know no mean and standard deviation."""
    if numbers is None:
        return weights
    (mean, deviation), last = numbers, "classifier."
    weight, bias = weights[f"{last}weight"] * deviation, weights[f"{last}bias"] * deviation + mean
    return {**weights, f"{last}weight": weight, f"{last}bias": bias}


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
