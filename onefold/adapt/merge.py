"""Adapters that become a part of the weights they stand beside: for good (`merge`), or for as long as they are at work.

Beside its matrix an adapter costs two thin products for every token, which decoding one text at a time feels.
"""

import torch
from torch import nn

from onefold.adapt.lora import LoRALinear
from onefold.adapt.surgery import PLAIN, Switch, matrices, replace, switch_of
from onefold.core.errors import UserError
from onefold.nn.linear import Linear
from onefold.nn.sparse.experts import GroupedLinear


def is_adapted(model: nn.Module) -> bool:
    """Whether surgery was done to this model."""
    return hasattr(model, "openings") or not all(matrix.is_plain for matrix in matrices(model))


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """The same model in place, every matrix plain: the active adapter merged, weights of fewer bits as they compute.

    Memory: one matrix more. Adapters that were not active are gone. Raises UserError when the active one is vectors
    before the text, which are no part of any matrix.
    """
    if hasattr(model, "openings"):
        model.openings.close(model)
    for matrix in list(matrices(model)):
        if matrix.is_plain:
            continue
        layer, weight = matrix.module, matrix.module.dense().detach()
        *experts, outward, inward = weight.shape
        with torch.device("meta"):
            dense = (GroupedLinear if experts else Linear)(*experts, inward, outward, bias=layer.bias is not None)
        dense.weight = nn.Parameter(weight.clone() if weight.untyped_storage().nbytes() != weight.nbytes else weight)
        dense.bias = layer.bias
        replace(model, matrix.path, dense)
    model.switch = Switch()
    return model.requires_grad_(True)


@torch.no_grad()
def merge_active(model: nn.Module) -> None:
    """Write the active adapter into the weights that it stands beside, until `switch.unmerge()`, or another is used.

    Memory: those weights once more, on the host, whence they come back to the last bit. Vectors before the text stay
    where they are. Errors: UserError when no adapter is active, or weights of fewer bits cannot take it in.
    """
    switch = switch_of(model)
    if switch.active is None:
        raise UserError("no adapter is active that could be merged")
    if switch.merged:
        return
    layers = adapted(model)
    if coarse := [name for name, layer in layers.items() if not isinstance(layer.base, PLAIN)]:
        raise UserError(
            f"{coarse[0]} has fewer bits and takes no adapter in; open what onefold merge writes, in plain numbers"
        )
    try:
        for layer in layers.values():
            weight = layer.base.weight
            merged = layer.dense()
            switch.replaced.append((weight, weight.detach().to("cpu", copy=True)))
            weight.copy_(merged)
    except BaseException:  # out of memory, say
        switch.unmerge()
        raise
    switch.merged = True


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    """The matrices that the active adapter stands beside, by name."""
    found = ((matrix.name, matrix.module) for matrix in matrices(model))
    return {name: layer for name, layer in found if isinstance(layer, LoRALinear) and layer.loras is not None}


def can_be_merged(model: nn.Module, most: float) -> bool:
    """Whether `merge_active` would change nothing but rounding in fp32, and put aside no more than `most` bytes."""
    bases = [layer.base for layer in adapted(model).values()]
    plain = all(isinstance(base, PLAIN) and base.weight.dtype == torch.float32 for base in bases)
    return bool(bases) and plain and sum(base.weight.nbytes for base in bases) <= most
