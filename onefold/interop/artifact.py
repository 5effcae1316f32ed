"""Our own folder: what a model is, its weights, how it reads, and its card. Safetensors and JSON, nothing else.

artifact.json        format, version, model (the config), card (where it came from, what was measured)
model.safetensors    parameters under our names; shards and an index above 4 GB
tokenizer.json, tokenizer_config.json, or pictures.json
manifest.json        sizes and checksums
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.loaded import Arrived, Loaded, dtype_named, fill, name_of
from onefold.interop.table import own_weights
from onefold.interop.tensors import SafetensorFiles, check_written, find_safetensors, write_safetensors
from onefold.interop.tokenizers.processors import Processor, load_processor, save_processor
from onefold.interop.tokenizers.tokens import check_vocabulary
from onefold.interop.words.word_reader import as_reader
from onefold.interop.words.word_vectors import KIND, load_vectors
from onefold.models.embedder import EmbedderConfig
from onefold.models.encoder import EncoderConfig
from onefold.models.recurrent.bilm import BiLMConfig
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.models.seq2seq import Seq2SeqConfig
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.models.vision.convnext import ConvNeXtConfig
from onefold.models.vision.mae import MAEConfig
from onefold.models.vision.nfnet import NFNetConfig
from onefold.models.vision.residual import ResidualConfig
from onefold.models.vision.resnet import ResNetConfig
from onefold.models.vision.vit import ViTConfig
from onefold.models.words.word_reader import WordReaderConfig

FILE, FORMAT, VERSION = "artifact.json", "onefold", 1
Picture = ViTConfig | MAEConfig | ConvNeXtConfig | ResNetConfig | ResidualConfig | NFNetConfig
ModelConfig = (
    DecoderConfig
    | EncoderConfig
    | EmbedderConfig
    | Seq2SeqConfig
    | RecurrentSeq2SeqConfig
    | RecurrentConfig
    | BiLMConfig
    | WordReaderConfig
    | Picture
)
MODELS: Mapping[Any, Any] = {kind.model_fields["kind"].default: kind for kind in get_args(ModelConfig)}
# From version n to n + 1, on the content of artifact.json.
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def save_artifact(
    folder: Path,
    model: nn.Module,
    config: ModelConfig,
    processor: Processor | None,
    card: Mapping[str, Any] | None = None,
    dtype: "str | torch.dtype | None" = None,
) -> None:
    """Write the folder in one step: a crash leaves the old one or the new one. `dtype`: None keeps the model's."""
    with atomic_folder(Path(folder)) as temporary:
        write_artifact(temporary, config, own_weights(model), processor, card, dtype)


def write_artifact(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    processor: Processor | None,
    card: Mapping[str, Any] | None = None,
    dtype: "str | torch.dtype | None" = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an artifact's files into a folder that the caller finishes (a checkpoint adds its own state).

    `weights`: parameters by our names, shared ones once. `more`: what an adapted model says beside (adapted.py).
    """
    kind = dtype_named(dtype)
    with torch.device("meta"):
        model = config.build()
    holders = ((name, model.get_submodule(name.rpartition(".")[0])) for name, _ in model.named_parameters())
    least = {name: holder.least for name, holder in holders if hasattr(holder, "least")}
    write_safetensors(folder, weights, kind, least=least)
    if processor is not None:
        save_processor(folder, processor)
    stored = kind or next(iter(weights.values())).dtype
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": config.to_dict(),
        "weights": {"dtype": name_of(stored), "parameters": count_parameters(config)},
        "card": dict(card or {}),
        **(more or {}),
    }
    (folder / FILE).write_text(json.dumps(content, indent=1, default=str))


def load_artifact(
    folder: Path,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype | None" = None,
    arrived: Arrived | None = None,
) -> Loaded:
    """Read what `save_artifact` wrote. Raises UserError naming the file that is missing, damaged or too new."""
    folder = Path(folder)
    content = read_card(folder)
    if isinstance(model := content.get("model"), dict) and model.get("kind") == KIND:
        return as_reader(load_vectors(folder), torch.device(device))
    check_written(folder, every=True)
    config = read_model_config(content, folder / FILE)
    files = find_safetensors(folder)
    if files is None:
        raise UserError(f"{folder / 'model.safetensors'} is missing")
    source = SafetensorFiles(files)
    processor = load_processor(folder)
    if isinstance(processor, Tokenizer):
        check_vocabulary(processor, config, str(folder))

    def reading(names):
        if unlike := set(names) ^ set(source):
            raise UserError(f"{folder}: the weights are of another model than {FILE} says ({sorted(unlike)[0]})")
        return source

    model = fill(config, reading, torch.device(device), dtype, str(folder), arrived)
    return Loaded(config, model, processor, content["card"])


def read_card(folder: Path) -> dict[str, Any]:
    """The content of a folder's artifact.json, brought up to this version."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("version"), int):
        raise UserError(f"{path} is not an artifact of onefold")
    if content["version"] > VERSION:
        raise UserError(f"{path} has version {content['version']}; this onefold reads up to {VERSION}: upgrade it")
    while content["version"] < VERSION:
        step = MIGRATIONS.get(content["version"])
        if step is None:
            raise UserError(f"{path} has the unknown version {content['version']}")
        content = {**step(content), "version": content["version"] + 1}
    return content


def read_model_config(content: Mapping[str, Any], where: Path) -> ModelConfig:
    """The model's config in an artifact. No code is imported for it."""
    model = content.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in MODELS:
        raise UserError(f"{where}: the model kind {kind!r} is not known here; known: {', '.join(MODELS)}")
    try:
        return MODELS[kind].from_dict(model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
