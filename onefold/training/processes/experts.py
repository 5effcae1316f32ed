"""Experts spread over processes (GShard, arXiv 2006.16668; DeepSpeed-MoE, arXiv 2201.05596, section 5).

    rows sorted by expert → all-to-all → this process's experts → all-to-all → back where they came from

Each process holds E / processes whole experts, their gradients and their optimizer memory; nobody ever gathers them to
train. What travels are tokens, as many as have chosen an expert elsewhere: numbers of rows first, then the rows. All
else about the layer stays: each process routes its own tokens, so capacity is a share of its own micro-batch, balance
losses are means over it, and both are what as many micro-batches on one process would have.

Parameters are DTensors cut by expert, which checkpoints, optimizers and averages treat as FSDP2's. A gradient is the
sum over the tokens of all processes, since all of them were here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from onefold.core import dist
from onefold.nn.sparse.experts import Experts
from onefold.nn.sparse.grouped import spread


def cannot_lie(layer: Experts) -> str | None:
    """Why the experts of this layer cannot be shared by all processes; None: they can."""
    count, processes = layer.router.weight.shape[0], dist.world()
    if count % processes:
        return (
            f"{count} experts cannot be shared evenly by {processes} processes, so their weights are sharded as others "
            "are, and gathered whenever they compute"
        )
    if any(True for _ in layer.experts.buffers()):
        return "experts of fewer bits are on every process, all of them"
    return None


def lay(layer: Experts, mesh: DeviceMesh, device: torch.device) -> None:
    """Keep of the experts those of this process, on `device`. Every process has the same weights before."""
    for module in layer.experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = parameter.detach()[dist.share(len(parameter))].to(device, copy=True)  # lets go of the whole
            laid = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
            setattr(module, name, nn.Parameter(laid, requires_grad=parameter.requires_grad))
    layer.exchange = exchanged


def laid(model: nn.Module) -> list[Experts]:
    """The layers whose experts lie on several processes."""
    return [layer for layer in model.modules() if isinstance(layer, Experts) and layer.exchange is not None]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every process has all experts, and needs no other to read its tokens.

    Modules forget what they computed once: gathered weights may lie where other ones did, and count no changes.
    """

    def here(weights: dict[str, Tensor]):
        return lambda experts, rows, ends: functional_call(experts, weights, (rows, ends))

    def forget():
        for module in model.modules():
            if hasattr(module, "forget"):
                module.forget()

    layers = laid(model)
    forget()
    for layer in layers:
        layer.exchange = here({name: p.detach().full_tensor() for name, p in layer.experts.named_parameters()})
    try:
        yield
    finally:
        for layer in layers:
            layer.exchange = exchanged
        forget()


@torch.compiler.disable  # how many rows travel is known in Python only
def exchanged(experts: nn.Module, rows: Tensor, ends: Tensor) -> Tensor:
    """What the experts of all processes make of `rows` [M, D], sorted by expert up to `ends` [E]; zeros behind."""
    if torch.is_autocast_enabled(rows.device.type):
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))  # which they are multiplied in: half as much travels
    world = dist.world()
    asked = ends.diff(prepend=ends.new_zeros(1)).view(world, -1)
    found = dist.exchange(asked, [1] * world, [1] * world)  # [process, own experts]: rows that each gives to each
    given, taken = torch.stack((asked.sum(1), found.sum(1))).tolist()
    arrived = dist.exchange(rows[: sum(given)], given, taken)

    own = torch.arange(found.shape[1], device=rows.device).expand_as(found).flatten()
    order = own.repeat_interleave(found.flatten(), output_size=len(arrived)).argsort(stable=True)  # by expert
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    held = {name: p.to_local(grad_placements=p.placements) for name, p in experts.named_parameters()}
    made = functional_call(experts, held, (spread(arrived, order, back[None]), found.sum(0).cumsum(0).to(ends.dtype)))
    made = dist.exchange(spread(made, back, order[None]), taken, given)
    return F.pad(made, (0, 0, 0, len(rows) - len(made)))
