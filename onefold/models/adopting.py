"""Beginning a model with the weights of another: a part of it; of pictures, other classes and another size."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onefold.nn.vision.patches import resample


def below(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of a model's `part`, by its own names, where there is one; else all, which are those of a part."""
    inside = {name.removeprefix(f"{part}."): w for name, w in weights.items() if name.startswith(f"{part}.")}
    return inside or dict(weights)


def with_routes(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`weights` for a model that may decide about tokens' depth where the other did not: routers and halting units
    begin afresh."""
    own = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return {name: tensor for name, tensor in own.items() if ".route." in name or "repeat." in name} | dict(weights)


@torch.no_grad()
def adopt(model: nn.Module, weights: Mapping[str, Tensor], prefix: int = 0) -> dict[str, Tensor]:
    """`weights`, by the names of `model`, fitted to it.

    A masked autoencoder's encoder begins a classifier; places are stretched to another size of pictures, but for the
    first `prefix` of them. A classifier of another number of classes, or none, leaves `model`'s own, which is fresh;
    one of as many classes is kept, even if they are others: what a class means is not in the weights.
    """
    own = {name: tensor.detach() for name, tensor in model.named_parameters()}
    if not any(name.startswith("encoder.") for name in own):
        weights = below(weights, "encoder")
    fitted = dict(weights)
    for name, tensor in own.items():
        given = weights.get(name)
        if name.startswith("classifier.") and (given is None or given.shape != tensor.shape):
            fitted[name] = tensor
        elif name.endswith("places") and given is not None and given.shape != tensor.shape:
            side = round((len(tensor) - prefix) ** 0.5)
            fitted[name] = torch.cat((given[:prefix], resample(given[prefix:], (side, side))))
    return {name: tensor for name, tensor in fitted.items() if name in own or not name.startswith("classifier.")}
