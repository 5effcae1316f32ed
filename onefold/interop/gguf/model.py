"""Whole models in GGUF files: read, and written so that llama.cpp opens them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.core.config import differences
from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.core.progress import say
from onefold.interop.families.config_json import canonical, read_config, write_config
from onefold.interop.gguf.blocks import BLOCK, KINDS
from onefold.interop.gguf.container import open_container, write_container
from onefold.interop.gguf.vocab import read_tokenizer, write_tokenizer
from onefold.interop.loaded import Arrived, Loaded, fill
from onefold.interop.table import GateUp, QueryKeyValue, Row, Table, own_weights
from onefold.interop.tokenizers.tokens import check_vocabulary
from onefold.models.transformer import DecoderConfig
from onefold.nn.position import Llama3Scaling, RotaryConfig

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type
_ROPE = "rope_freqs.weight"
_CONTEXT = "rope.scaling.original_context_length"

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_LLAMA_KEYS = _SIZES | {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
# Ours of transformers' names for what a GGUF says: architecture → (their model_type, key → key of config.json).
_ARCHITECTURES: Mapping[str, tuple[str, dict[str, str]]] = {
    "llama": ("llama", _LLAMA_KEYS),
    "qwen2": ("qwen2", _LLAMA_KEYS),
    "qwen3": ("qwen3", _LLAMA_KEYS),
    "gptneox": (
        "gpt_neox",
        _SIZES | {
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
            "rope.freq_base": "rotary_emb_base",
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
    ),
}  # fmt: skip
_WRITTEN_AS = {theirs: ours for ours, (theirs, _) in _ARCHITECTURES.items()} | {"mistral": "llama"}


def load_gguf(
    path: Path,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype | None" = None,
    arrived: Arrived | None = None,
) -> Loaded:
    """Read a GGUF file of one of the known architectures; quantized weights become plain numbers.

    Raises UserError for other architectures, unknown tensor types, and files that are cut off or contradict themselves.
    """
    opened = open_container(path)
    shapes = {name: stored.shape for name, stored in opened.tensors.items()}
    divisors = opened[_ROPE] if _ROPE in shapes else None
    architecture, data = describe(opened.metadata, shapes, divisors, str(path))
    _, config, _ = read_config(data, str(path))
    tokenizer = read_tokenizer(opened.metadata, str(path))
    check_vocabulary(tokenizer, config, str(path))
    table = _table(architecture)
    where = str(path)
    device = torch.device(device)
    model = fill(config, lambda names: table.read(config, names, opened, where), device, dtype, where, arrived)
    kinds = Counter(stored.kind.code for stored in opened.tensors.values())
    names = {kind.code: name for name, kind in KINDS.items()}
    card = {
        "source": where,
        "format": "gguf",
        "family": data["model_type"],
        "name": opened.metadata.get("general.name"),
        "types": {names.get(code, f"GGML {code}"): count for code, count in kinds.items()},
    }
    return Loaded(config, model, tokenizer, card)


def save_gguf(path: Path, loaded: Loaded, kind: str = "F16") -> None:
    """Write a model as one GGUF file of type F32, F16, BF16 or Q8_0 that llama.cpp opens.

    Vectors stay F32; where rows are not whole blocks, Q8_0 becomes F16. Raises UserError when llama.cpp has no such
    model or tokenizer.
    """
    path, kind, where = Path(path), kind.upper(), str(path)
    if kind not in FILE_TYPES:
        raise UserError(f"{where}: GGUF files are written as {', '.join(FILE_TYPES)}, not {kind}")
    if loaded.tokenizer is None:
        raise UserError(f"{where}: llama.cpp needs a tokenizer in the file, and this model has none")
    check_vocabulary(loaded.tokenizer, loaded.config, where)
    architecture, values, weights = _translate(loaded, where)
    kinds = {name: _kind(name, tensor, kind) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if kinds[name] == "F16" and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise UserError(f"{where}: {name} has numbers too large for F16; write it as F32 or BF16")
    head = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": str(loaded.card.get("name") or path.stem),
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    vocabulary = write_tokenizer(loaded.tokenizer, loaded.config.vocab, where)
    with atomic_file(path) as temporary:
        write_container(temporary, head | values | vocabulary, weights, kinds)


def describe(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], divisors: Tensor | None, where: str
) -> tuple[str, dict[str, Any]]:
    """The architecture of a GGUF file, and what it says as a config.json of that family.

    `shapes`: of its tensors; `divisors`: the one named rope_freqs, if it is there.
    """
    architecture = str(values.get("general.architecture"))
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UserError(f"{where}: the architecture {architecture!r} is not supported; supported are {known}")
    if "token_embd.weight" not in shapes:
        raise UserError(f"{where}: lacks token_embd.weight; is it a part of a split model? Join the parts first")
    model_type, names = _ARCHITECTURES[architecture]
    own = {k.removeprefix(f"{architecture}."): v for k, v in values.items() if k.startswith(f"{architecture}.")}
    data: dict[str, Any] = {theirs: _rounded(own[key]) for key, theirs in names.items() if key in own}
    if missing := sorted(f"{architecture}.{key}" for key in _SIZES if key not in own):
        raise UserError(f"{where}: damaged: lacks {missing[0]}")
    if data.get("sliding_window") and model_type == "llama":
        model_type = "mistral"
    data |= {
        "model_type": model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if model_type == "gpt2":
        return architecture, data | {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    heads = own["attention.head_count"]
    head_width = own.get("attention.key_length") or (own["embedding_length"] // heads if heads else 0)
    turned = own.get("rope.dimension_count", head_width)
    bias = "blk.0.attn_output.bias" in shapes
    if model_type == "gpt_neox":
        data["rotary_pct"] = turned / head_width if head_width else 1.0
    elif turned != head_width:
        raise UserError(f"{where}: turns {turned} of {head_width} channels of a head, which {model_type} does not")
    else:
        data["mlp_bias"] = "blk.0.ffn_gate.bias" in shapes
    data |= {"attention_bias": bias, "rope_scaling": _scaling(own, divisors, where)}
    if data.get("sliding_window") and model_type in ("qwen2", "qwen3"):
        data |= {"use_sliding_window": True, "max_window_layers": 0}
    return architecture, data


def _scaling(own: Mapping[str, Any], divisors: Tensor | None, where: str) -> dict[str, Any] | None:
    """Rope scaling as config.json has it. Llama 3's is stored as a divisor for each frequency."""
    kind = own.get("rope.scaling.type", "none")
    if divisors is not None:
        theta, divisors = _rounded(own.get("rope.freq_base", 1e4)), divisors.float()
        meant = {
            "rope_type": "llama3",
            "factor": _rounded(divisors.max().item()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": own.get(_CONTEXT, 8192),
        }
        scaling = Llama3Scaling(factor=meant["factor"], context=meant["original_max_position_embeddings"])
        expected = _divisors(RotaryConfig(theta=theta, scaling=scaling), 2 * len(divisors))
        if not torch.allclose(divisors, expected, rtol=1e-3):
            raise UserError(f"{where}: its frequencies are scaled in a way that is not Llama 3's")
        return meant
    if kind in ("none", ""):
        return None
    return {"rope_type": kind, "factor": _rounded(own.get("rope.scaling.factor", 1.0))}


def _translate(loaded: Loaded, where: str) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Architecture, values and tensors of a model, refused when a reader would understand another model."""
    config = _without_dropout(loaded.config)
    family, data = write_config(config, prefer=loaded.card.get("family"))
    if (architecture := _WRITTEN_AS.get(family.name)) is None:
        known = ", ".join(_WRITTEN_AS)
        raise UserError(f"{where}: GGUF files are written of {known}, not of {family.name}; save it with format='hf'")
    _, names = _ARCHITECTURES[architecture]
    values = {key: data[theirs] for key, theirs in names.items() if data.get(theirs) is not None}
    tensors = _table(architecture).write(config, own_weights(loaded.model))
    tensors = {name: tensor.float() if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    rotary = config.block.mixer.position
    if isinstance(rotary, RotaryConfig):
        head_width = config.block.mixer.widths(config.width)[2]
        values["rope.dimension_count"] = turned = rotary.turned(head_width)
        if turned % 2:
            raise UserError(f"{where}: llama.cpp turns an even number of channels of a head, this model {turned}")
        if isinstance(rotary.scaling, Llama3Scaling):
            tensors[_ROPE] = _divisors(rotary, head_width)
            values[_CONTEXT] = rotary.scaling.context
        elif rotary.scaling is not None:
            values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rotary.scaling.factor)}
    if architecture == "gptneox" and config.tied:  # llama.cpp wants its head spelled out
        tensors["output.weight"] = tensors["token_embd.weight"]
    if architecture == "qwen3" and config.block.mixer.bias:
        raise UserError(f"{where}: llama.cpp's qwen3 has no biases in attention, this model has")
    if "attention.key_length" in values:
        values["attention.value_length"] = values["attention.key_length"]
    values["vocab_size"] = config.vocab
    values = {f"{architecture}.{key}": value for key, value in values.items()}
    _check_same(config, architecture, values, tensors, where)
    if window := config.blocks()[0].mixer.window:
        say(f"{where}: llama.cpp does not know this model's window; texts beyond {window} tokens will differ there")
    return architecture, values, tensors


def _check_same(config: DecoderConfig, architecture: str, values: dict, tensors: dict[str, Tensor], where: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _, data = describe({**values, "general.architecture": architecture}, shapes, tensors.get(_ROPE), where)
    lost = differences(canonical(config), canonical(read_config(data, where)[1]))
    lost.pop("tied", None)  # only where the head was spelled out
    if lost:
        path, (ours, theirs) = next(iter(lost.items()))
        raise UserError(f"{where}: llama.cpp has no such {architecture} model: {path} is {ours}, there it is {theirs}")


def _table(architecture: str) -> Table:
    """llama.cpp's names. Its llama turns neighbouring channels, its other architectures half a head apart, like us."""
    if architecture in ("gpt2", "gptneox"):
        qkv = Row("blocks.{i}.mixer.qkv", ("blk.{i}.attn_qkv",))
    else:
        parts = tuple(f"blk.{{i}}.attn_{x}" for x in "qkv")
        qkv = Row("blocks.{i}.mixer.qkv", parts, QueryKeyValue(interleaved=architecture == "llama"))
    return Table(
        rows=(
            Row("embed.token", ("token_embd",)),
            Row("embed.position", ("position_embd",)),
            Row("blocks.{i}.mixer_norm", ("blk.{i}.attn_norm",)),
            qkv,
            Row("blocks.{i}.mixer.q_norm", ("blk.{i}.attn_q_norm",)),
            Row("blocks.{i}.mixer.k_norm", ("blk.{i}.attn_k_norm",)),
            Row("blocks.{i}.mixer.out", ("blk.{i}.attn_output",)),
            Row("blocks.{i}.ffn_norm", ("blk.{i}.ffn_norm",)),
            Row("blocks.{i}.ffn.gate_up", ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"), GateUp()),
            Row("blocks.{i}.ffn.up", ("blk.{i}.ffn_up",)),
            Row("blocks.{i}.ffn.out", ("blk.{i}.ffn_down",)),
            Row("norm", ("output_norm",)),
            Row("unembed", ("output",)),
        ),
        ignorable=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd.*"),
    )


def _divisors(rotary: RotaryConfig, head_width: int) -> Tensor:
    """By what each frequency is divided: Float[head_width / 2]."""
    position = torch.ones(1, 1, dtype=torch.long)
    plain = rotary.but({"scaling": None}).angles(position, head_width)
    return (plain / rotary.angles(position, head_width)).flatten()


def _kind(name: str, tensor: Tensor, kind: str) -> str:
    if tensor.ndim == 1 or name == "position_embd.weight":
        return "F32"
    return "F16" if kind == "Q8_0" and tensor.shape[-1] % BLOCK else kind


def _without_dropout(config: DecoderConfig) -> DecoderConfig:
    return config.but({"embed.dropout": 0.0, "block.dropout": 0.0, "block.mixer.dropout": 0.0})


def _rounded(value: Any) -> Any:
    """Floats lie there in 32 bits: 9.99999975e-06 was 1e-05."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
