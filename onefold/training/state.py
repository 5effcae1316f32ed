"""What resuming needs, and where it lies.

    RUN/checkpoints/120/            an artifact (config, model.safetensors, tokenizer), which load and serve read, with
        state/optimizer.safetensors     the optimizer's memory, by parameter
        state/loader.safetensors        what a loader holds that has written its data itself (infer/rollouts/rollout.py)
        state/state.json                where the run stands: TrainState
        manifest.json                   checksums of all of it
    RUN/checkpoints/best.json       {"step": 60, "value": 1.49}: the best held-out loss and the checkpoint that has it

A checkpoint holds whole tensors whatever the number of processes, so any other number can go on from it. It appears
under its name only when it is complete. Random states are not in it: every step seeds its generators from (seed, step,
process), so that nothing but the step needs to be remembered.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from onefold.core import dist
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder, atomic_write, clear_leftovers, verify_folder
from onefold.core.progress import say
from onefold.interop.table import own_weights
from onefold.interop.tensors import SafetensorFiles, find_safetensors
from onefold.training.optimizers.optim import Optimizer
from onefold.training.processes.shards import Held

FORMAT = 3  # 2: buffers had no moving averages; 1: what was read was called "tokens"


@dataclass
class TrainState:
    """Where a run stands: all that the next step depends on, beside weights and the optimizer's memory."""

    step: int = 0  # steps done
    read: int = 0  # tokens or images so far, by all processes
    seconds: float = 0.0  # of wall time, pauses between sessions not counted
    skipped: int = 0  # steps whose update was not applied
    loader: dict = field(default_factory=dict)  # the data loader's own: plain values and tensors
    losses: list[float] = field(default_factory=list)  # of the last steps, which tell a spike
    norms: list[float] = field(default_factory=list)
    best: dict | None = None  # {"step", "value"} of the best evaluation
    stale: int = 0  # evaluations since then
    ending: list[int] | None = None  # [first, last] step of a cool-down that the time limit began


def save_due(step: int, every: int, history: int | None) -> bool:
    """Whether a checkpoint is due after `step` steps."""
    return (step > 0 and step % every == 0) or (history is not None and in_history(step, history))


def in_history(step: int, history: int) -> bool:
    """0, 1, 2, 4, 8, … up to `history`, then every multiple of it: as Pythia's checkpoints lie (arXiv 2304.01373)."""
    return step % history == 0 or (step < history and step & (step - 1) == 0)


def to_keep(steps: list[int], last: int, history: int | None, best: int | None) -> set[int]:
    """Which of the saved steps stay: the `last` newest, those of the history, and the best."""
    kept = set(sorted(steps)[-last:])
    return kept | {s for s in steps if s == best or (history is not None and in_history(s, history))}


class Checkpoints:
    """The checkpoints of one run. Every process calls every method; the main one touches the disk."""

    def __init__(
        self,
        folder: Path,
        last: int = 3,
        history: int | None = None,
        weights: Callable[[nn.Module], dict[str, Tensor]] = own_weights,  # what of a model is kept
    ):
        self.folder, self.last, self.history, self.weights = folder, last, history, weights

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or not, in order."""
        return sorted(int(f.name) for f in self.folder.glob("*") if f.name.isdigit()) if self.folder.is_dir() else []

    def newest_good(self) -> Path | None:
        """The newest whole checkpoint; None when there are none at all. Damaged newer ones are set aside, with a line.

        Errors: UserError when there are checkpoints, but none is whole.
        """
        found, problem = None, None
        if dist.is_main():
            clear_leftovers(self.folder)
            damaged = []
            for step in reversed(self.steps()):
                problems = verify_folder(self.folder / str(step))
                if not problems:
                    found = self.folder / str(step)
                    break
                damaged.append((step, problems[0]))
            if damaged and found is None:
                problem = f"{damaged[0][1]}. No checkpoint in {self.folder} is whole; remove the folder to start anew"
            elif damaged and found is not None:
                say(f"{damaged[0][1]}: going back to the last good checkpoint, {found.name}")
                for step, _ in damaged:
                    self._set_aside(step)
        found, problem = dist.broadcast((found, problem))
        if problem:
            raise UserError(problem)
        return found

    def save(
        self, state: TrainState, model: nn.Module, optimizer: Optimizer, artifact: Callable[[Path, dict], None]
    ) -> None:
        """Write checkpoint `state.step`; `artifact(folder, tensors)` writes what load and serve need. Then prune."""
        held = {name: value.contiguous() for name, value in state.loader.items() if isinstance(value, Tensor)}
        plain = replace(state, loader={name: value for name, value in state.loader.items() if name not in held})
        weights = gather(self.weights(model))
        memory = gather(optimizer.named_state())
        averages = gather(optimizer.averages())
        if not dist.is_main():
            dist.barrier()
            return
        with atomic_folder(self.folder / str(state.step)) as folder:
            artifact(folder, weights | averages)  # averages are what load returns; training goes on with the others
            (folder / "state").mkdir()
            try:
                save_file(memory, folder / "state" / "optimizer.safetensors")
                if averages:
                    save_file(weights, folder / "state" / "weights.safetensors")
                if held:
                    save_file(held, folder / "state" / "loader.safetensors")
            except SafetensorError as error:  # a full disk, most often
                raise OSError(str(error)) from error
            told = {"format": FORMAT, **asdict(plain), "optimizer": [g["steps"] for g in optimizer.param_groups]}
            (folder / "state" / "state.json").write_text(json.dumps(told, indent=1))
        self._point_to_best(state)
        best = state.best["step"] if state.best else None
        for step in set(self.steps()) - to_keep(self.steps(), self.last, self.history, best):
            shutil.rmtree(self.folder / str(step))
        dist.barrier()

    def stand(self, path: Path) -> TrainState:
        """Where the run stood at a checkpoint."""
        told = _read_state(path)
        state = TrainState(**{f.name: told[f.name] for f in fields(TrainState) if f.name in told})
        if (held := path / "state" / "loader.safetensors").is_file():
            state.loader |= load_file(held)
        return state

    def restore(self, path: Path, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy a checkpoint's weights and memory into `model` and `optimizer`, on any number of processes."""
        own = path / "state" / "weights.safetensors"
        files = [own] if own.is_file() else find_safetensors(path) or []
        copy_tensors(SafetensorFiles(files), self.weights(model), path)
        memory, steps = optimizer.named_state(), _read_state(path)["optimizer"]
        if len(steps) == len(optimizer.param_groups) - 1:  # format 2: as if the buffers had always been what they are
            group, steps = optimizer.param_groups[-1], [*steps, steps[0]]
            for name, buffer in zip(group["names"], group["params"]):
                memory.pop(f"{name}.average").copy_((1 - group["ema"] ** steps[0]) * buffer)
        copy_tensors(SafetensorFiles([path / "state" / "optimizer.safetensors"]), memory, path)
        for group, done in zip(optimizer.param_groups, steps, strict=True):
            group["steps"] = done

    def _point_to_best(self, state: TrainState) -> None:
        pointer = self.folder / "best.json"
        if state.best and (self.folder / str(state.best["step"])).is_dir():
            atomic_write(pointer, json.dumps(state.best))
        else:
            pointer.unlink(missing_ok=True)

    def _set_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)


def gather(tensors: Mapping[str, Tensor | Held]) -> dict[str, Tensor]:
    """Whole tensors in the main process's memory, one after the other; nothing in the others."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor | Held) else tensor
        if dist.is_main():
            found[name] = whole.detach().cpu()
    return found


def _read_state(path: Path) -> dict:
    told = json.loads((path / "state" / "state.json").read_text())
    if told["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer Onefold; upgrade this one")
    if told["format"] == 1:
        told["read"] = told.pop("tokens")
    return told


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], targets: Mapping[str, Tensor | Held], origin: Path) -> None:
    """Copy by name into whole or sharded tensors.

    Errors: UserError when a name or a shape differs.
    """
    if unlike := sorted({*source} ^ {*targets}):
        where = "is not in the model" if unlike[0] in source else "is missing"
        raise UserError(f"{origin}: {unlike[0]} {where}" + (f" (and {len(unlike) - 1} more)" if unlike[1:] else ""))
    for name, target in targets.items():
        tensor = source[name]
        if target.shape != tensor.shape:
            raise UserError(f"{origin}: {name} is {list(tensor.shape)}, the model makes it {list(target.shape)}")
        if isinstance(target, DTensor):
            tensor = tensor.to(target.device)
            tensor = distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
        target.copy_(tensor)
