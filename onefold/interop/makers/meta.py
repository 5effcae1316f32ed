"""The makers' own folders: params.json beside consolidated.*.pth (Meta) or consolidated.safetensors (Mistral).

Sources: the reference code of Llama (llama/model.py, llama3/tokenizer.py) and of mistral-inference.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.families.config_json import read_config
from onefold.interop.huggingface import read_json
from onefold.interop.loaded import Arrived, Loaded, fill
from onefold.interop.table import GateUp, QueryKeyValue, Row, Table
from onefold.interop.tensors import SafetensorFiles, read_index, read_pickled
from onefold.interop.tokenizers.meta_tokens import load_makers_tokenizer
from onefold.interop.tokenizers.tokens import check_vocabulary

TABLE = Table(
    rows=(
        Row("embed.token", ("tok_embeddings",)),
        Row("blocks.{i}.mixer_norm", ("layers.{i}.attention_norm",)),
        Row(
            "blocks.{i}.mixer.qkv",
            tuple(f"layers.{{i}}.attention.w{x}" for x in "qkv"),
            QueryKeyValue(interleaved=True),
        ),
        Row("blocks.{i}.mixer.out", ("layers.{i}.attention.wo",)),
        Row("blocks.{i}.ffn_norm", ("layers.{i}.ffn_norm",)),
        Row("blocks.{i}.ffn.gate_up", ("layers.{i}.feed_forward.w1", "layers.{i}.feed_forward.w3"), GateUp()),
        Row("blocks.{i}.ffn.out", ("layers.{i}.feed_forward.w2",)),
        Row("norm", ("norm",)),
        Row("unembed", ("output",)),
    ),
    ignorable=(r"rope\.freqs",),
)
_BY_ROWS = re.compile(r".*\.(wq|wk|wv|w1|w3)\.weight|output\.weight")
_BY_COLUMNS = re.compile(r".*\.(wo|w2)\.weight")
_MISTRAL_ONLY = ("hidden_dim", "head_dim", "sliding_window")
_SETTINGS = """
dim n_layers n_heads n_kv_heads vocab_size multiple_of ffn_dim_multiplier norm_eps rope_theta max_seq_len
max_batch_size use_scaled_rope rope_scaling_factor rope_high_freq_factor hidden_dim head_dim sliding_window
tied_embeddings model_type"""
_KNOWN = frozenset(_SETTINGS.split())


def is_makers_folder(folder: Path) -> bool:
    return (folder / "params.json").is_file() and any(folder.glob("consolidated*"))


def load_makers(
    folder: Path,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype | None" = None,
    arrived: Arrived | None = None,
) -> Loaded:
    """Read a folder in Meta's or Mistral's own format, its shards joined as their tensor parallelism cut them.

    Raises UserError for mixtures of experts and other settings without a counterpart here, and for damaged files.
    """
    where = str(folder)
    params = read_json(folder / "params.json")
    if odd := sorted(key for key, value in params.items() if key not in _KNOWN and value not in (None, False)):
        raise UserError(f"{folder / 'params.json'}: {', '.join(odd)} is not supported; plain Llama and Mistral are")
    width = params.get("dim")
    if not isinstance(width, int):
        raise UserError(f"{folder / 'params.json'}: lacks dim")
    source = _open(folder, width)
    data = describe(params, source, where)
    _, config, _ = read_config(data, str(folder / "params.json"))
    tokenizer = load_makers_tokenizer(folder)
    check_vocabulary(tokenizer, config, where)
    device = torch.device(device)
    model = fill(config, lambda names: TABLE.read(config, names, source, where), device, dtype, where, arrived)
    return Loaded(config, model, tokenizer, {"source": where, "format": "makers", "family": data["model_type"]})


def describe(params: Mapping[str, Any], source: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """What params.json says, as a config.json of the family."""
    try:
        width, heads = params["dim"], params["n_heads"]
        mistral = any(key in params for key in _MISTRAL_ONLY)
        embedding = source["tok_embeddings.weight"]
        tied = bool(params.get("tied_embeddings", False)) or "output.weight" not in source
        vocab = params.get("vocab_size", -1)
        if vocab > 0 and vocab != len(embedding):
            raise UserError(f"{where}: the weights have a vocabulary of {len(embedding)}, params.json one of {vocab}")
        theta = params.get("rope_theta", 1e4 if not mistral or params.get("sliding_window") else 1e6)
        data = {
            "model_type": "mistral" if mistral else "llama",
            "vocab_size": len(embedding),
            "hidden_size": width,
            "num_hidden_layers": params["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": params.get("n_kv_heads") or heads,
            "head_dim": params.get("head_dim") or width // heads,
            "intermediate_size": params.get("hidden_dim") or ffn_width(params),
            "rms_norm_eps": params.get("norm_eps", 1e-5),
            "rope_theta": theta,
            "tie_word_embeddings": tied,
            "max_position_embeddings": params.get("max_seq_len") or _context(params, mistral, theta),
        }
    except KeyError as missing:
        raise UserError(f"{where}: lacks {missing}") from None
    except (TypeError, ZeroDivisionError):
        raise UserError(f"{where}: a setting in params.json has the wrong type") from None
    if mistral:
        return data | {"sliding_window": params.get("sliding_window")}
    if params.get("use_scaled_rope"):
        # Nothing in the file tells Llama 3.2, scaled by 32, from 3.1, scaled by 8, but that only 3.2 ties its head.
        same = not tied and torch.equal(source["output.weight"], embedding)
        factor = params.get("rope_scaling_factor") or (32.0 if same or tied else 8.0)
        data["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": params.get("rope_high_freq_factor") or 4.0,
            "original_max_position_embeddings": 8192,
        }
    return data


def ffn_width(params: Mapping[str, Any]) -> int:
    """Meta's rule: two thirds of 4·dim, times a factor, up to the next multiple of `multiple_of`."""
    width = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(params["ffn_dim_multiplier"] * width)
    return -(-width // params.get("multiple_of", 256)) * params.get("multiple_of", 256)


class Shards(Mapping[str, Tensor]):
    """Tensor-parallel shards joined again. Rows: queries, keys, values, w1, w3, head. Columns: wo, w2.

    Embeddings were cut by columns before Llama 3 and by rows since: their width tells. Norms are whole in every shard.
    """

    def __init__(self, shards: list[Mapping[str, Tensor]], width: int, where: str):
        self.shards, self.width = shards, width
        for i, shard in enumerate(shards[1:], 1):
            if unlike := set(shard) ^ set(shards[0]):
                raise UserError(f"{where}: {sorted(unlike)[0]} is not in all shards (shard {i} differs from the first)")

    def __getitem__(self, name: str) -> Tensor:
        parts = [shard[name] for shard in self.shards]
        if len(parts) == 1 or parts[0].ndim < 2:
            return parts[0]
        if name == "tok_embeddings.weight":
            return torch.cat(parts, dim=0 if parts[0].shape[1] == self.width else 1)
        if _BY_ROWS.fullmatch(name) or _BY_COLUMNS.fullmatch(name):
            return torch.cat(parts, dim=0 if _BY_ROWS.fullmatch(name) else 1)
        return parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards[0])

    def __len__(self) -> int:
        return len(self.shards[0])


def _open(folder: Path, width: int) -> Mapping[str, Tensor]:
    if (index := folder / "consolidated.safetensors.index.json").is_file():
        return SafetensorFiles(read_index(index))
    if (file := folder / "consolidated.safetensors").is_file():
        return SafetensorFiles([file])
    files = sorted(folder.glob("consolidated.*.pth"))
    numbers = [file.name.split(".")[1] for file in files]
    if not files or numbers != [f"{i:02}" for i in range(len(files))]:
        raise UserError(f"{folder}: consolidated.00.pth, consolidated.01.pth, … are not complete: found {numbers}")
    return Shards([read_pickled(file) for file in files], width, str(folder))


def _context(params: Mapping[str, Any], mistral: bool, theta: float) -> int:
    """params.json does not say it: Mistral 32k, Llama 3.1 128k, Llama 3 8k, Llama 2 4k."""
    return 32768 if mistral else 131072 if params.get("use_scaled_rope") else 8192 if theta > 1e5 else 4096
