"""What a run will cost, before it starts: arithmetic, memory, time; and how fast this machine is.

Arithmetic is counted, not derived: one row goes through the objective and back on the meta device, where tensors have
shapes and no content, and every matrix multiplication is added up. Attention counts whole, T² per row, as is the custom
(PaLM, arXiv 2204.02311, appendix B); a multiplication and an addition are two operations.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from onefold.adapt.every import AnyAdapt, adapt
from onefold.core import dist
from onefold.core.batch import Batch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.interop.table import own_buffers
from onefold.training.optimizers.rules import memory_bytes
from onefold.training.processes.shards import local

# Dense bf16 operations a second, as the makers publish them.
PUBLISHED_PEAK = {
    **{"B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12},
    **{"L40S": 362e12, "L40": 181e12, "L4": 121e12},
}  # the first that is part of the device's name
CPU_BUDGET = 2**30  # bytes of activations at once on a CPU, where larger micro-batches are no faster
USUAL_SHARE = 0.4  # of the machine's speed that training reaches; for a first guess of the time
MARGIN = 0.7  # of the free memory that may be planned for: allocators and temporary tensors need the rest


def count_flops(model: Config, objective: Callable, batch: Batch, steps: Sequence[AnyAdapt] = ()) -> float:
    """Operations per token or picture, forward and backward, of `model` (a config) on rows like those of `batch`.

    steps: what it is adapted by; frozen matrices have no gradient.
    """
    built = _outline(model, steps)
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward}
    ) as counter:
        loss = objective(built, batch.to("meta"), 0)
        sum(term.sum for term in loss.terms.values()).backward()
    return counter.get_total_flops() / batch.size


def _conv_backward(
    gradient, x, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted, **_
) -> int:
    """Each gradient costs what the convolution did. torch counts that by the weight once for every group, of as many
    channels: seven times too much for a ConvNeXt."""
    return conv_flop_count(x, weight, gradient, transposed) * sum(wanted[:2])


def parameter_bytes(model: Config, optimizer: Config, steps: Sequence[AnyAdapt] = ()) -> int:
    """Weights, and of those that train gradients and the optimizer's memory, before processes share them."""
    return sum(_bytes(model, optimizer, steps))


def _bytes(model: Config, optimizer: Config, steps: Sequence[AnyAdapt], processes: int = 1) -> tuple[int, int]:
    """As `parameter_bytes`, of one of so many processes: on the device, and on the host where the optimizer's memory is
    kept there. Every process has all buffers, which weights of fewer bits are too."""
    built = _outline(model, steps)
    updates = optimizer.build(built)
    weights = sum(p.nbytes * (2 if p.requires_grad else 1) for p in built.parameters()) // processes
    weights += sum(buffer.nbytes for buffer in built.buffers())
    if updates.offload:
        return weights + updates.offload.device_bytes // processes, updates.offload.host_bytes // processes
    return weights + sum(map(memory_bytes, updates.param_groups)) // processes, 0


def _outline(model: Config, steps: Sequence[AnyAdapt]) -> nn.Module:
    """The adapted model of these configs: shapes and no content."""
    with torch.device("meta"):
        return adapt(model.build(), steps)


def check_memory(
    model: Config, optimizer: Config, device: torch.device, steps: Sequence[AnyAdapt] = ()
) -> tuple[int, int]:
    """Bytes that the parameters of these configs need in this process on `device`, and bytes that are free there.

    Errors: UserError when the first are more than the second, or when the host has not enough for what it is to keep.
    """
    needed, kept = _bytes(model, optimizer, steps, dist.world())
    if device.type == "cpu":
        needed, kept = needed + kept, 0
    free, there = free_bytes(device), free_bytes(torch.device("cpu"))
    if needed > free:
        other = "" if optimizer.offload or device.type == "cpu" else ", or optimizer.offload=true"
        raise UserError(
            f"weights, gradients and optimizer need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free here; "
            f"take a smaller model or more processes{other}"
        )
    if kept > there:
        raise UserError(
            f"optimizer.offload needs {kept / 1e9:.1f} GB of the host's memory, and {there / 1e9:.1f} GB are free; "
            "take a smaller model or more machines"
        )
    return needed, free


def row_bytes(model: nn.Module, objective: Callable, batch: Batch) -> int:
    """What a slot of `batch`, mostly a row, leaves in memory between the passes forward and backward, on its device.

    Under FSDP the unit that stays whole (see parallel.py) counts too.
    """
    held = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in local(held)}
    kept: dict[int, Tensor] = {}  # by address; holding them keeps addresses from being used again

    def note(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # which does not hold its graph, that holds this function: nothing would be freed soon
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    before = {name: buffer.clone() for name, buffer in own_buffers(model).items()}  # running averages must not see it
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        objective(model, batch, 0)
    for name, buffer in own_buffers(model).items():
        buffer.copy_(before[name])
    return sum(t.untyped_storage().nbytes() for t in kept.values()) // batch.slots


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(_machine_free(), _container_free()) // processes


def fit_rows(rows: int, each: int, free: int, device: torch.device) -> int:
    """The micro-batch: as few equal parts of `rows` as fit, when each row takes `each` bytes of the `free` ones."""
    budget = max(0, free) * MARGIN
    if device.type == "cpu":
        budget = min(budget, CPU_BUDGET)
    most = max(1, int(budget // max(1, each)))
    return -(-rows // -(-rows // most))


def machine_speed(device: torch.device, bf16: bool = False) -> float:
    """Operations a second that MFU is measured against: published for known GPUs, else of a large product, timed."""
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        for known, peak in PUBLISHED_PEAK.items():
            if known in name:
                return peak
    size = 1024 if device.type == "cpu" else 8192
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = min(_seconds(lambda: x @ x, device) for _ in range(8))
    return 2 * size**3 / best


def best_seconds(step: Callable[[], object], device: torch.device, budget: float = 3.0) -> float:
    """Least seconds of a call of `step`, called for about `budget` seconds: what the machine does when it is free."""
    _seconds(step, device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        times.append(_seconds(step, device))
    return min(times)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # not Linux: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def _container_free() -> int:
    """What the limit of a container (cgroup 2 or 1) leaves; a huge number without one."""
    places = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for limit, used in places:
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return 2**62
