"""Folders of sentence-transformers: a transformer, how its tokens become one vector, and what stands before texts.

modules.json                        the modules in order, each with a folder of its own
config.json, model.safetensors, …   the transformer, as Hugging Face publishes it
sentence_bert_config.json           how many tokens it reads
1_Pooling/, 2_Dense/, 3_Normalize/  settings, and weights of dense layers
config_sentence_transformers.json   prompts
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.huggingface import Published, open_weights, read_json, write_folder
from onefold.interop.loaded import Loaded, dtype_named, fill
from onefold.interop.tensors import write_safetensors
from onefold.models.embedder import Embedder, EmbedderConfig, Pooling, ProjectionConfig, embedder_of

MODULES, PROMPTS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
POOLING: Mapping[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_OLD = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
_TYPE = "sentence_transformers.models."  # all versions know these names
_ACTIVATION = {"identity": "linear.Identity", "tanh": "activation.Tanh", "relu": "activation.ReLU",
               "gelu": "activation.GELU"}  # fmt: skip
_TRUNK = "trunk."
_NO_LIMIT = 10**9  # transformers writes 10³⁰ where a tokenizer knows no length


def is_sentence_folder(folder: Path) -> bool:
    return (folder / MODULES).is_file()


def load_sentences(
    folder: Path, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype | None" = None
) -> Loaded:
    """Read a folder of sentence-transformers. Raises UserError naming a module or setting that is not known here."""
    modules = _modules(folder)
    published = Published.open(modules[0][1])
    config, dense = _config(folder, modules, published)

    def reading(names: Iterable[str]) -> Mapping[str, Tensor]:
        inside = [name.removeprefix(_TRUNK) for name in names if name.startswith(_TRUNK)]
        return _Weights(published.weights(inside), dense, config)

    model = fill(config, reading, torch.device(device), dtype, str(folder))
    return Loaded(config, model, published.tokenizer, published.card() | {"format": "sentence-transformers"})


def save_sentences(folder: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None) -> None:
    """Write an embedder so that sentence-transformers opens it. Raises UserError for what it has no module for."""
    config, model = loaded.config, loaded.model
    assert isinstance(config, EmbedderConfig)
    assert isinstance(model, Embedder)
    if config.delimiters is not None:
        raise UserError(
            "sentence-transformers knows what stands before a text, and no delimiters behind it; "
            "save it with format='onefold'"
        )
    tokenizer = loaded.tokenizer
    if tokenizer is not None and tokenizer.pad is None:  # texts of a batch must be padded by something
        stops = tokenizer.stops
        tokenizer = Tokenizer(tokenizer.backend, tokenizer.bos, tokenizer.eos, tokenizer.end, None, stops)
    names = ["Transformer", "Pooling", *["Dense"] * len(config.projections), *["Normalize"] * config.normalise]
    places = ["", *(f"{i}_{name}" for i, name in enumerate(names) if i)]
    with atomic_folder(Path(folder)) as temporary:
        write_folder(temporary, Loaded(config.trunk, model.trunk, tokenizer, loaded.card), dtype)
        rows = [
            {"idx": i, "name": str(i), "path": place, "type": _TYPE + name}
            for i, (name, place) in enumerate(zip(names, places))
        ]
        _write(temporary / MODULES, rows)
        _write(temporary / LENGTH, {"max_seq_length": config.length, "do_lower_case": False})
        _write(temporary / PROMPTS, {"prompts": config.prompts, "default_prompt_name": config.prompt})
        modes = {old: POOLING[new] == config.pooling for old, new in _OLD.items()}
        _write(temporary / places[1] / "config.json", {"word_embedding_dimension": config.trunk.width, **modes})
        for place, projection, layer in zip(places[2:], config.projections, model.projections):
            said = {
                "in_features": layer.in_features,
                "out_features": projection.width,
                "bias": projection.bias,
                "activation_function": f"torch.nn.modules.{_ACTIVATION[projection.activation]}",
            }
            _write(temporary / place / "config.json", said)
            tensors = {f"linear.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
            write_safetensors(temporary / place, tensors, dtype_named(dtype))
        if config.normalise:
            (temporary / places[-1]).mkdir()


class _Weights(Mapping[str, Tensor]):
    """The parameters of an embedder: the transformer's, the dense layers', and a temperature that nobody published."""

    def __init__(self, trunk: Mapping[str, Tensor], dense: list[Mapping[str, Tensor]], config: EmbedderConfig):
        self._trunk, self._dense = trunk, dense
        self._temperature = -torch.tensor([config.temperature]).log()

    def __getitem__(self, name: str) -> Tensor:
        if name.startswith(_TRUNK):
            return self._trunk[name.removeprefix(_TRUNK)]
        if name.startswith("projections."):
            _, number, leaf = name.split(".")
            return self._dense[int(number)][f"linear.{leaf}"]
        return self._temperature

    def __iter__(self):
        return (f"{_TRUNK}{name}" for name in self._trunk)

    def __len__(self) -> int:
        return len(self._trunk)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(which module, its folder), in order."""
    try:
        rows = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        found = [(str(row["type"]).rpartition(".")[2], str(row["path"]), str(row["type"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MODULES} is not readable: {error!r}") from None
    for name, path, kind in found:
        if name not in KNOWN or not kind.startswith("sentence_transformers."):
            raise UserError(f"{folder / MODULES}: the module {kind} is not known here; known are {', '.join(KNOWN)}")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{folder / MODULES}: {path!r} is not inside of this folder")
    names = [name for name, *_ in found if name != "Dropout"]  # which does nothing outside of training
    dense = len(names) - 2 - (names[-1] == "Normalize")
    if names[:2] != ["Transformer", "Pooling"] or names[2 : 2 + dense] != ["Dense"] * dense:
        raise UserError(
            f"{folder / MODULES}: {', '.join(names)} is no order known here: Transformer, Pooling, Dense…, Normalize"
        )
    return [(name, folder / path) for name, path, _ in found if name != "Dropout"]


def _config(
    folder: Path, modules: list[tuple[str, Path]], published: Published
) -> tuple[EmbedderConfig, list[Mapping[str, Tensor]]]:
    """What the modules say, and the weights of the dense layers."""
    trunk = embedder_of(published.config)
    if not isinstance(trunk, EmbedderConfig):
        raise UserError(f"{folder}: {published.family.name} gives no vectors of texts here")
    projections, dense = [], []
    for name, place in modules:
        if name == "Dense":
            projections.append(_projection(place))
            dense.append(open_weights(place))
    said = read_json(folder / PROMPTS, optional=True)
    changes: dict[str, Any] = {
        "pooling": _pooling(modules[1][1]),
        "projections": [projection.to_dict() for projection in projections],
        "normalise": modules[-1][0] == "Normalize",
        "context": min(_length(published.folder), trunk.trunk.context),
        "prompts": {name: text or "" for name, text in (said.get("prompts") or {}).items()},
        "prompt": said.get("default_prompt_name"),
    }
    try:
        return trunk.but(changes, trusted=False), dense
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _pooling(place: Path) -> Pooling:
    file = place / "config.json"
    data = read_json(file)
    modes = [new for old, new in _OLD.items() if data.get(old)]
    modes += [name for name, value in data.items() if name.startswith("pooling_mode_") and value and name not in _OLD]
    given = data.get("pooling_mode", modes)
    given = [given] if isinstance(given, str) else given
    if len(given) != 1 or given[0] not in POOLING:
        raise UserError(f"{file}: pooling by {', '.join(map(str, given)) or 'nothing'} is not known here, only by "
                        f"{', '.join(POOLING)}")  # fmt: skip
    if data.get("include_prompt") is False:
        raise UserError(f"{file}: pooling that leaves out the prompt is not known here")
    return POOLING[given[0]]


def _projection(place: Path) -> ProjectionConfig:
    file = place / "config.json"
    data = read_json(file)
    theirs = str(data.get("activation_function", _ACTIVATION["tanh"])).rpartition(".")[2]
    ours = next((ours for ours, name in _ACTIVATION.items() if name.rpartition(".")[2] == theirs), None)
    if ours is None or not isinstance(data.get("out_features"), int):
        raise UserError(f"{file}: the activation {theirs} is not known here, only {', '.join(_ACTIVATION)}")
    return ProjectionConfig(width=data["out_features"], activation=ours, bias=bool(data.get("bias", True)))


def _length(folder: Path) -> int:
    """How many tokens of a text are read: newer versions leave it to the tokenizer."""
    said = read_json(folder / LENGTH, optional=True)
    if said.get("do_lower_case"):
        raise UserError(f"{folder / LENGTH}: do_lower_case is not known here; put it into the tokenizer")
    limits = (said.get("max_seq_length"), read_json(folder / "tokenizer_config.json", True).get("model_max_length"))
    return next((n for n in limits if isinstance(n, int) and 0 < n < _NO_LIMIT), _NO_LIMIT)


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
