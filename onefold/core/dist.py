"""The only door to other processes. Without torchrun every function here is a no-op for a world of one."""

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as td
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    return td.get_rank() if _running() else int(os.environ.get("RANK", 0))


def world() -> int:
    return td.get_world_size() if _running() else 1


def is_main() -> bool:
    return rank() == 0


def local_rank() -> int:
    """This process's place on its own machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


PATIENCE = timedelta(hours=4)  # the others wait while the main process prepares data; a dead one torchrun notices


def share(count: int) -> slice:
    """Which of `count` things in order are this process's."""
    return slice(count * rank() // world(), count * (rank() + 1) // world())


def init(device: torch.device) -> None:
    """Join the other processes when torchrun started this one: NCCL between GPUs, gloo between CPUs."""
    if _running() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    td.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(shutdown)


def shutdown() -> None:
    if _running():
        td.destroy_process_group()


def barrier() -> None:
    if _running():
        td.barrier()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, on each of them (in place, and returned)."""
    if _running():
        td.all_reduce(tensor)
    return tensor


def all_max(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes give, on each of them."""
    if not _running():
        return number
    tensor = torch.tensor(number, device=device)
    td.all_reduce(tensor, td.ReduceOp.MAX)
    return int(tensor)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows [n, …] of all processes, which may have different numbers of them, and where this one's begin.

    A gradient that reaches the result is added up over the processes and returns to whoever gave the rows.
    """
    if not _running() or rows.is_meta:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world())]
    td.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    return _Gathered.apply(rows, sizes), sum(sizes[: rank()])


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # collectives want equal shapes
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        td.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        own = all_sum(gradient.clone()).split(ctx.sizes)[rank()]
        return own, None


def exchange(rows: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
    """The first given[0] rows go to process 0, the next given[1] to process 1, and so on; what is returned holds
    taken[0] rows that process 0 gave this one, then taken[1] of process 1's, and so on. Gradients take the way back.

    Every process takes part, also one that has nothing to give. Source: all-to-all of GShard, arXiv 2006.16668.
    """
    return _Exchanged.apply(rows, given, taken) if _running() else rows


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
        ctx.given, ctx.taken = given, taken
        found = rows.new_empty((sum(taken), *rows.shape[1:]))
        td.all_to_all_single(found, rows.contiguous(), list(taken), list(given))
        return found

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Exchanged.apply(gradient, ctx.taken, ctx.given), None, None


def broadcast(value: T) -> T:
    """The main process's value, on every process. The value is pickled between our own processes only."""
    if not _running():
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def _running() -> bool:
    return td.is_available() and td.is_initialized()
