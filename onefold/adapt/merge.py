"""Taking surgery back: a model whose matrices are plain again, with what was learned beside them merged in."""

import torch
from torch import nn

from onefold.adapt.surgery import Switch, matrices, replace
from onefold.nn.linear import Linear


def is_adapted(model: nn.Module) -> bool:
    """Whether surgery was done to this model."""
    return hasattr(model, "openings") or any(type(matrix.module) is not Linear for matrix in matrices(model))


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """The same model in place, every matrix plain: the active adapter merged, weights of fewer bits as they compute.

    Memory: one matrix more. Adapters that were not active are gone. Raises UserError when the active one is vectors
    before the text, which are no part of any matrix.
    """
    if hasattr(model, "openings"):
        model.openings.close(model)
    for matrix in list(matrices(model)):
        layer = matrix.module
        if type(layer) is Linear:
            continue
        weight = layer.dense().detach()
        with torch.device("meta"):
            dense = Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        dense.weight = nn.Parameter(weight.clone() if weight.untyped_storage().nbytes() != weight.nbytes else weight)
        dense.bias = layer.bias
        replace(model, matrix.path, dense)
    model.switch = Switch()
    return model.requires_grad_(True)
