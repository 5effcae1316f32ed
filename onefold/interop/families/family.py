"""What a family of published models is, and the reading of its config.json key by key."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.table import Reading
from onefold.nn.feedforward import Activation

T = TypeVar("T")

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "relu": "relu", "relu2": "relu_squared", "silu": "silu", "swish": "silu",
}  # fmt: skip
THEIR_ACTIVATION = {ours: theirs for theirs, ours in reversed(list(ACTIVATIONS.items()))}

# Keys of config.json that do not change what a trained model computes.
_SILENT = """
architectures model_type transformers_version torch_dtype dtype use_cache initializer_range bos_token_id eos_token_id
pad_token_id unk_token_id sep_token_id decoder_start_token_id pretraining_tp chunk_size_feed_forward is_encoder_decoder
is_decoder id2label label2id problem_type output_hidden_states output_attentions return_dict return_dict_in_generate
_name_or_path name_or_path classifier_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels
summary_first_dropout n_ctx reorder_and_upcast_attn gradient_checkpointing task_specific_params attn_implementation
_attn_implementation auto_map tokenizer_class max_length do_sample max_window_layers use_sliding_window layer_types
head_dim model_max_length num_labels classifier_dropout_prob output_past num_beams num_return_sequences length_penalty
repetition_penalty temperature top_k top_p eos_token_ids torchscript directionality pooler_fc_size pooler_num_fc_layers
pooler_num_attention_heads pooler_size_per_head pooler_type unsloth_version unsloth_fixed neftune_noise_alpha
transformers.js_config prefix finetuning_task"""
SILENT = frozenset(_SILENT.split())


class Keys:
    """A config.json that remembers which of its keys were asked for.

    tensors: the names of those that lie beside it, where they are known.
    """

    def __init__(self, data: Mapping[str, Any], where: str, tensors: Iterable[str] = ()):
        self.data, self.where, self.used, self.tensors = data, where, set[str](), tuple(tensors)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or its class's default where the file is silent."""
        self.used.add(name)
        return self.data.get(name, default)

    def number(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {name} must be a positive whole number, not {value!r}")
        return value

    def must_be(self, name: str, *allowed: Any) -> None:
        """Refuse settings that would need another model; absence is fine."""
        if self.get(name, allowed[0]) not in allowed:
            raise UserError(f"{self.where}: {name}={self.data[name]!r} is not supported (only {allowed[0]!r})")

    def activation(self, name: str, default: str) -> Activation:
        value = self.get(name, default)
        if value not in ACTIVATIONS:
            raise UserError(f"{self.where}: the activation {value!r} is not supported; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def holds(self, pattern: str, default: bool) -> bool:
        """Whether a tensor has this in its name; `default` where their names are not known."""
        return any(re.search(pattern, name) for name in self.tensors) if self.tensors else default

    def unknown(self) -> list[str]:
        """Keys that nobody asked for and that are not known to be silent."""
        return sorted(k for k, v in self.data.items() if k not in self.used | SILENT and v not in (None, False, [], {}))


class FamilyTable(Protocol):
    """Which tensor of a family's files becomes which parameter of the model of a config, and back."""

    def read(self, config: Any, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> Reading: ...
    def write(self, config: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Family:
    """One architecture: its name in config.json, its class unless `write` says another, table, and config both ways."""

    name: str
    architecture: str
    table: FamilyTable
    read: Callable[[Keys], Any]
    write: Callable[[Any], dict[str, Any]]


def need(part: Any, kind: type[T]) -> T:
    """`part`, which a family must have to be written."""
    if not isinstance(part, kind):
        raise UserError(f"has {type(part).__name__} where {kind.__name__} is wanted")
    return part


def labels(count: int) -> dict[str, Any]:
    """The keys that say how many classes there are, with names that say nothing."""
    names = {str(i): f"LABEL_{i}" for i in range(count)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
