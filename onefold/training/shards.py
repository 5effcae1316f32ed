"""Tensors of which each process holds a part, as the optimizer works on them."""

from collections.abc import Iterable

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
