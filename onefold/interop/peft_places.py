"""Where the matrices of a published model lie in ours, and what PEFT calls them.

The table of the base's family tells, as it is given row numbers to write. transformers keeps the experts of a Mixtral
layer as two tensors, `mlp.experts.gate_up_proj` and `down_proj` [E, outward, inward], whatever its files call them.
PEFT adapts such a tensor by one A [E·r, inward], expert after expert, and one B [outward, r·E], in which the numbers of
the experts are neighbours; and it wraps the layer once for each of the two, the first one innermost. Adapters older
than that have a matrix for each expert, `block_sparse_moe.experts.0.w1`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onefold.adapt.lora import WHOLE
from onefold.adapt.surgery import Matrix, matrices, shared
from onefold.interop.families.config_json import write_config
from onefold.interop.loaded import Loaded

EACH = re.compile(r"(.*)\.block_sparse_moe\.experts\.\d+\.(w[123])")
STACKED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}  # gate, up, and out
LAYERS = ".base_layer"


@dataclass(frozen=True)
class Place:
    """Where a matrix of the published model lies in ours."""

    matrix: Matrix
    rows: Tensor  # Long[outward]: which row of ours each of theirs is
    turned: bool  # their weight lies the other way round
    part: str  # of our matrix; WHOLE: all of it
    expert: int | None = None  # whose matrix it is
    stacked: bool = False  # theirs are the matrices of all experts

    @property
    def own(self) -> str:
        """What `targets` call it."""
        above = self.matrix.name.rpartition(".")[0]
        return self.matrix.name if self.part == WHOLE else f"{above}.{self.part}".removeprefix(".")

    @property
    def first(self) -> int:
        return 0 if self.part == WHOLE else self.matrix.parts[self.part][0]

    def unstacked(self, kind: str, tensor: Tensor) -> Tensor:
        """Their "a" or "b" of all experts, as ours: [E, r, inward] or [E, outward, r]."""
        if kind == "a":
            return tensor.view(self.matrix.experts, -1, tensor.shape[1])
        return tensor.view(len(tensor), -1, self.matrix.experts).permute(2, 0, 1)


def stacked(kind: str, tensor: Tensor) -> Tensor:
    """Our "a" or "b" of all experts as theirs."""
    return tensor.flatten(0, 1) if kind == "a" else tensor.permute(1, 2, 0).flatten(1)


def places(base: Loaded) -> dict[str, Place]:
    """Every matrix of the published model by its name, head and embeddings aside.

    Errors: UserError when the base is of no published family.
    """
    family, _ = write_config(base.config, prefer=base.card.get("family"))
    found: dict[str, Place] = {}
    twofold = shared(base.model)
    for matrix in matrices(base.model):
        layer = matrix.module
        if matrix.name.startswith("classifier") or (matrix.is_plain and id(layer.weight) in twofold):
            continue
        outward, experts = layer.out_features, matrix.experts
        numbers = torch.arange(outward * (experts or 1)).double()[:, None]
        numbers = numbers.view(experts, outward, 1) if experts else numbers
        for name, written in family.table.write(base.config, {f"{matrix.name}.weight": numbers}).items():
            name, order = name.removesuffix(".weight"), written.flatten().long()
            expert, rows = int(order[0]) // outward if experts else None, order % outward
            ends = int(rows.min()), int(rows.max()) + 1
            part = next((part for part, own in matrix.parts.items() if own == ends), WHOLE)
            found[name] = Place(matrix, rows, written.shape[0] != len(order), part, expert)
            if match := EACH.fullmatch(name):
                whole = f"{match[1]}.mlp.experts.{STACKED[match[2]]}"
                found[whole] = Place(matrix, torch.arange(outward), False, WHOLE, stacked=True)
    return found


def published(module: str, known: Mapping[str, Place], targets: Iterable[str]) -> str:
    """The name in `known` of a module in PEFT's file. targets: its `target_parameters`."""
    if module in known:
        return module
    layer, inner = module, 0
    while layer.endswith(LAYERS):
        layer, inner = layer.removesuffix(LAYERS), inner + 1
    # trained without its head, theirs has names that begin further inside
    tensors = [name for name in known if known[name].stacked and f".{name}".rpartition(".")[0].endswith(f".{layer}")]
    tensors = [name for name in tensors if any(f".{name}".endswith(f".{target}") for target in targets)]
    ours = tensors[-1 - inner : len(tensors) - inner] or [n for n in known if n.endswith(f".{module}")]
    return next(iter(ours), module)


def wrapped(names: Iterable[str], known: Mapping[str, Place]) -> dict[str, str]:
    """What PEFT's file calls each of these modules when just these are adapted."""
    called, layers = {}, {}
    for name in reversed([name for name in known if name in {*names}]):
        called[name] = name
        if known[name].stacked:
            layer = name.rpartition(".")[0]
            called[name] = layers[layer] = f"{layers[layer]}{LAYERS}" if layer in layers else layer
    return called
