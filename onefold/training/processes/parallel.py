"""Several processes, and compilation, put around a model from outside.

A plan is a table: pattern of module names → how its weights lie on the processes. Modules that fit a row become units
of FSDP2: each process holds a shard of a unit's weights, gradients and optimizer memory, and the whole only while the
unit computes. What no row names (embedding, last norm, head) forms the unit of the model itself. Experts that fit a row
`by_expert` lie whole on one process each, and tokens travel to them (experts.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import wraps

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from onefold.core import dist
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.nn.sparse.experts import Experts
from onefold.training.processes import experts


class Unit(Config):
    """A row of the plan."""

    pattern: str  # of module names, part by part: "blocks.*" fits blocks.0 and not blocks.0.ffn; "**." first: anywhere
    by_expert: bool = False  # of experts: each process holds its share of them, and tokens travel
    reshard: bool = True  # give whole weights back between forward and backward: less memory, one more gathering

    def fits(self, name: str) -> bool:
        parts, patterns = name.split("."), self.pattern.split(".")
        if patterns[0] == "**":
            patterns = patterns[1:]
            parts = parts[-len(patterns) :]
        return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


BLOCKS = ("blocks.*", "encoder.blocks.*", "decoder.blocks.*", "trunk.blocks.*", "stages.*.blocks.*")
UNITS = (*(Unit(pattern=pattern) for pattern in BLOCKS), Unit(pattern="**.experts", by_expert=True))


def place(model: nn.Module, plan: tuple[Unit, ...], device: torch.device, compiled: bool) -> None:
    """Move `model` to `device`, spread it over the processes and compile it, in place."""
    compiled = compiled and can_compile(device)
    units = units_of(model, plan)
    if dist.world() > 1:
        mesh = init_device_mesh(device.type, (dist.world(),))
        lay_experts(model, plan, mesh, device)
        model.to(device)
        for module, _ in units if compiled else ():
            module.compile()
        shard(model, units, mesh)
        return
    model.to(device)
    if compiled:
        for name in entry_points(model):
            setattr(model, name, torch.compile(getattr(model, name)))


def units_of(model: nn.Module, plan: tuple[Unit, ...]) -> list[tuple[nn.Module, Unit]]:
    """The modules that fit a row and are sharded."""
    if hasattr(model, "openings"):  # blocks that also read what stands before the text have results FSDP does not see
        return []
    rows = [row for row in plan if not row.by_expert]
    return [(module, row) for name, module in model.named_modules() for row in rows if row.fits(name)]


def lay_experts(model: nn.Module, plan: tuple[Unit, ...], mesh: DeviceMesh, device: torch.device) -> None:
    """Lay the experts that fit a row out over the processes. Those that cannot be shared evenly are left to FSDP2."""
    rows, left = [row for row in plan if row.by_expert], {}
    names = [f"{name}.experts" for name, layer in model.named_modules() if isinstance(layer, Experts)]
    for row in rows if names else ():
        if not any(map(row.fits, names)):
            raise UserError(f"the plan's row {row.pattern} (by_expert) fits no experts; there are {names[0]}, …")
    for name, layer in model.named_modules():
        if isinstance(layer, Experts) and any(row.fits(f"{name}.experts") for row in rows):
            if reason := experts.cannot_lie(layer):
                left.setdefault(reason, []).append(name)
            else:
                experts.lay(layer, mesh, device)
    for reason, (first, *others) in left.items():
        say(f"{first}{f' and {len(others)} more' if others else ''}: {reason}")


def shard(model: nn.Module, units: list[tuple[nn.Module, Unit]], mesh: DeviceMesh) -> None:
    """Make units of FSDP2 of the modules in `units`, and one of all else. Every process has the same weights before."""
    apart = {parameter for layer in experts.laid(model) for parameter in layer.experts.parameters()}
    for module, row in units:
        fully_shard(module, mesh=mesh, reshard_after_forward=row.reshard, ignored_params=apart)
    fully_shard(model, mesh=mesh, ignored_params=apart)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Gradients are summed as they are; the trainer divides by global counts.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for name in entry_points(model):
        setattr(model, name, without_views(getattr(model, name)))
        if name != "forward":
            register_fsdp_forward_method(model, name)


def without_views(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same method, but a view that it returns is copied.

    FSDP hooks the gathering of weights for the backward pass to that tensor. An operation in place on a view would lose
    the hook, of which it warns, and gradients would be wrong.
    """

    @wraps(method)
    def called(*args, **kwargs):
        found = method(*args, **kwargs)
        return found.clone() if found._is_view() else found

    return called


def entry_points(model: nn.Module) -> tuple[str, ...]:
    """The methods that an objective calls, as the model declares them."""
    return getattr(model, "entry_points", ("forward",))


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here; says so in a line when it does not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing compiler, header or GPU toolchain raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"torch.compile does not work here ({reason}); going on without it")
        return False
    return True


def synchronise(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass adds up gradients over processes: only the last micro-batch's has to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def reshard(model: nn.Module) -> None:
    """Let go of whole weights that forward passes without a backward one have left behind.

    FSDP keeps those of the model's own unit for a backward pass, and would take them for the newest later.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole(model: nn.Module, plan: tuple[Unit, ...]) -> Iterator[None]:
    """Every process holds all weights, and so computes by itself, as often as it wants. They enter it together."""
    units = [(module, row) for module, row in units_of(model, plan) if isinstance(module, FSDPModule)]
    if isinstance(model, FSDPModule):
        model._get_fsdp_state()._lazy_init()  # as a first forward pass does, which may not have been yet
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    for module, _ in units:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        with experts.gathered(model):
            yield
    finally:
        for module, row in units:
            module.set_reshard_after_forward(row.reshard, recurse=False)
        reshard(model)


def check_rows(rows: int, processes: int) -> None:
    """Every process takes the same number of rows. Raises UserError where that cannot be."""
    if rows % processes:
        raise UserError(f"trainer.batch={rows} rows cannot be shared evenly by {processes} processes; use a multiple")
