"""Tensors of which each process holds a part, as the optimizer works on them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor; writing to it writes to the tensor."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor of which each process holds a `part`, as `parameter` is held."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    ).full_tensor()


def shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor that every process has."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


@dataclass(frozen=True)
class Held:
    """A tensor that is spread as `parameter` is, of which each process holds its part elsewhere: on the host."""

    part: Tensor
    parameter: DTensor

    @property
    def shape(self) -> torch.Size:
        return self.parameter.shape

    def full_tensor(self) -> Tensor:
        return whole(self.part.to(self.parameter.device), self.parameter)

    def copy_(self, tensor: Tensor) -> None:
        """Take the part that is this process's of a tensor that all have."""
        self.part.copy_(shard(tensor.to(self.parameter.device), self.parameter))


def held(tensor: Tensor, parameter: Tensor) -> Tensor | Held:
    """What is kept for a parameter, as it is, but a mere part of it as what it is a part of."""
    mere = isinstance(parameter, DTensor) and not isinstance(tensor, DTensor)
    return Held(tensor, parameter) if mere else tensor


def put(source: Tensor | Held, target: Tensor) -> None:
    """Write all of `source` to a tensor that is spread alike."""
    if isinstance(source, Held):
        local([target])[0].copy_(source.part)
    else:
        target.copy_(source)
