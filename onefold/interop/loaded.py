"""A model in memory, whatever it was read from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.data.pictures.reader import PictureReader
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.table import own_buffers
from onefold.models.transformer import DecoderConfig

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}


Arrived = Callable[[nn.Module, str], None]  # is told a model, and the name of a module whose weights have been read


@dataclass(frozen=True)
class Loaded:
    """A model, what it is, how it reads if that is known, and its card: where it came from, as plain values."""

    config: Any
    model: nn.Module
    processor: Tokenizer | PictureReader | None
    card: dict[str, Any] = field(default_factory=dict)
    # Hashes of what those weights were made of that no file has as they are (see adapted.py), by name.
    computed: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.processor if isinstance(self.processor, Tokenizer) else None


def dtype_named(name: "str | torch.dtype | None") -> torch.dtype | None:
    """ "bfloat16", "bf16", "torch.bfloat16" or a dtype; None for None and "auto"."""
    if name is None or isinstance(name, torch.dtype) or name == "auto":
        return None if name == "auto" else name
    plain = name.removeprefix("torch.")
    try:
        return DTYPES[SHORT.get(plain, plain)]
    except KeyError:
        raise UserError(f"no data type named {name}; use one of {', '.join(DTYPES)}") from None


def choose_dtype(wanted: "str | torch.dtype | None", device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """What to load as: what was asked for ("auto": as stored), else float32 on the CPU and as stored elsewhere."""
    if (named := dtype_named(wanted)) is not None:
        return named
    if stored is None or stored not in DTYPES.values() or (device.type == "cpu" and wanted != "auto"):
        return torch.float32
    return stored


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def fill(
    config: DecoderConfig,
    reading: Callable[[Iterable[str]], Mapping[str, Tensor]],
    device: torch.device,
    dtype: "str | torch.dtype | None",
    where: str,
    arrived: Arrived | None = None,
) -> nn.Module:
    """The model of this config with weights from `reading(names of its parameters)`, in evaluation mode.

    Memory: the model itself and one tensor more. Every parameter is a copy of its own, none points into a file.
    `arrived` may put a smaller module in the place of one that is complete.
    """
    with torch.device("meta"):
        model = config.build()
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    buffers = own_buffers(model)
    weights = reading([*(names[0] for names in places.values()), *buffers])
    kind: torch.dtype | None = None
    for first, *others in (*places.values(), *([name] for name in buffers)):
        tensor = weights[first]
        kind = kind or choose_dtype(dtype, device, tensor.dtype)  # the embedding's decides for all
        holder = model.get_submodule(first.rpartition(".")[0])
        empty = getattr(holder, first.rpartition(".")[2])
        if tensor.shape != empty.shape:
            raise UserError(_misfit(first, tensor, empty.shape, where))
        own = torch.promote_types(kind, getattr(holder, "least", kind))
        filled = torch.empty(empty.shape, device=device, dtype=own).copy_(tensor)
        if not torch.isfinite(filled.sum(dtype=torch.float32)):  # one pass: a sum keeps every NaN and infinity
            raise UserError(f"{where}: {first} has numbers that are not finite: damaged, or the dtype too narrow")
        if isinstance(empty, nn.Parameter):
            filled = nn.Parameter(filled, requires_grad=empty.requires_grad)
        for name in (first, *others):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, filled)
            if arrived and not any(p.is_meta for p in model.get_submodule(owner).parameters(recurse=False)):
                arrived(model, owner)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not left, f"buffers without values: {left}"
    return model.eval()


def _misfit(name: str, tensor: Tensor, shape: torch.Size, where: str) -> str:
    if name == "embed.token.weight" and tensor.ndim == 2 and tensor.shape[1] == shape[1]:
        return f"{where}: the weights have a vocabulary of {tensor.shape[0]}, the configuration one of {shape[0]}"
    return f"{where}: {name} is {list(tensor.shape)} in the weights, the configuration makes it {list(shape)}"
