"""The one loop.

    batch → micro-batches → objective → gradients → global averages → skip or step → evaluate → log → checkpoint

A step is a pure function of (weights, optimizer memory, TrainState, seed): generators are seeded anew from the seed,
the step and the process, so a run that was killed and resumed gives the same bits as one that was not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from onefold.core import dist
from onefold.core.batch import Batch
from onefold.core.config import Config, Slot
from onefold.core.progress import Progress, say
from onefold.data.prepared import Split
from onefold.nn.own_losses import listening
from onefold.objectives.base import Loss
from onefold.training.interrupt import Interrupt
from onefold.training.log import Log, Pace
from onefold.training.optimizers.optim import Optimizer, local_gradients
from onefold.training.optimizers.schedule import WSD, Schedule
from onefold.training.optimizers.spikes import SkipConfig, SpikeRule
from onefold.training.processes.buffers import Buffers
from onefold.training.processes.parallel import UNITS, Unit, reshard, synchronise
from onefold.training.processes.totals import Totals, global_counts
from onefold.training.state import Checkpoints, TrainState, save_due

Count = Annotated[int, Field(ge=1)]
Objective = Callable[[nn.Module, Any, int], Loss]


class TrainerConfig(Config):
    """How long, how fast, and what is kept. Steps count updates; `batch` counts rows in one update."""

    steps: Count = 1000
    batch: Count = 32  # rows, over all processes
    micro_batch: Count | None = None  # rows at once on one device; None: as many as fit its memory
    schedule: Annotated[Schedule, Slot()] = WSD()
    clip: Annotated[float, Field(gt=0)] | None = 1.0  # largest global norm of the gradient
    skip: SkipConfig | None = SkipConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where a GPU has it
    compile: bool = False
    device: str = "auto"
    parallel: tuple[Unit, ...] = UNITS  # what each process holds only a shard of
    log_every: Count = 1
    tensorboard: bool = False
    split: Split = "held_out"
    evaluate_every: Count | None = None  # None: after the last step only
    evaluate_batches: Count | None = None  # None: the whole split
    metric: str = "loss"  # of the evaluation; the lower, the better
    patience: Count | None = None  # evaluations without a better one after which the run ends
    checkpoint_every: Count | None = None  # None: ten in a run
    keep: Count = 3  # newest checkpoints; the best one stays too
    history: Count | None = None  # also save and keep 0, 1, 2, 4, … up to this, then its multiples
    time_limit: Annotated[float, Field(gt=0)] | None = None  # seconds; then a last cool-down: Trainer.ending_due

    @property
    def save_every(self) -> int:
        return self.checkpoint_every or max(1, self.steps // 10)

    def bf16(self, device: torch.device) -> bool:
        """Whether the model computes in bfloat16 (its weights stay fp32)."""
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.precision == "bf16" or (self.precision == "auto" and has_it)


class Dataset(Protocol):
    """What the loop asks of data (onefold.data says more)."""

    batch: type[Batch]  # what its loader gives
    unit: str  # what a model's reading is counted in: "tokens", "images"

    def size(self, split: Any) -> int: ...  # units; 0: nothing is in this split
    def evaluation(self, split: Any, rows: int) -> Any: ...  # as onefold.data.loader.Evaluation
    def figures(self, split: Any, sums: dict[str, float], share: float) -> dict[str, float]: ...


class Loader(Protocol):
    """Endless batches of this process's rows; `state()` says where the next one begins."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state(self) -> dict: ...
    def close(self) -> None: ...


@dataclass
class Trainer:
    """Everything that the loop needs, built. `run()` goes on from `state` and leaves it where training stopped."""

    config: TrainerConfig
    micro_batch: int
    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    dataset: Dataset
    loader: Loader
    state: TrainState
    checkpoints: Checkpoints
    artifact: Callable[[Path, dict[str, Tensor]], None]  # writes what load and serve need
    seed: int
    device: torch.device
    mfu: Callable[[float], float | None] = lambda units_per_second: None

    def run(self, out: Path) -> Literal["finished", "stopped early", "interrupted"]:
        """Train until done or interrupted; in each case a checkpoint of the last step is on disk then."""
        config, state = self.config, self.state
        self.buffers = Buffers(self.model)
        self.rule = SpikeRule(config.skip or SkipConfig(sigmas=inf), state.losses, state.norms)
        self.stopping = False  # all processes agreed to
        saved, batches, pace = state.step or None, iter(self.loader), Pace(state.read, self.dataset.unit, self.mfu)
        self.model.train()
        with (
            Log(out, state.step, config.tensorboard) as records,
            Interrupt() as self.interrupt,
            Progress("training", last_step(config, state), "steps", start=state.step) as bar,
        ):
            if saved is None and config.history:
                self.save()
            started = time.perf_counter() - state.seconds
            while not self.done and not self.stopping:
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                figures = self.step(batch)
                pace.add(state.read, time.perf_counter() - began, waited)
                better = self.evaluation_due and self.evaluate(figures)
                state.seconds = time.perf_counter() - started
                if state.step % config.log_every == 0 or config.split in figures:
                    records.write(figures | {"seconds": state.seconds} | pace.figures())
                bar.update(1, loss=figures["loss"], **pace.shown())
                if better or save_due(state.step, config.save_every, config.history):
                    self.save()
                    saved = state.step
            if saved != state.step:
                self.save()
        if not self.done:
            return "interrupted"
        return "stopped early" if out_of_patience(config, state) else "finished"

    @property
    def done(self) -> bool:
        return is_over(self.config, self.state)

    @property
    def evaluation_due(self) -> bool:
        every, step = self.config.evaluate_every, self.state.step
        if not self.dataset.size(self.config.split):
            return False  # nothing was held out
        return step == last_step(self.config, self.state) or bool(every and step % every == 0)

    def save(self) -> None:
        self.state.loader = self.loader.state()
        self.checkpoints.save(self.state, self.model, self.optimizer, self.artifact)

    # One step

    def step(self, batch: Batch) -> dict[str, Any]:
        """Read one batch, move the weights unless that would do harm, and return the step's figures."""
        config, state = self.config, self.state
        seed_generators(self.device, self.seed, state.step, dist.rank())
        self.optimizer.schedule(self.multiplier)
        self.optimizer.zero_grad(set_to_none=True)
        self.buffers.keep()
        totals, divided = self.backward(batch.to(self.device))

        gradients = local_gradients(self.optimizer)
        squares = torch.stack(torch._foreach_norm(gradients)).to(**totals.where).square().sum()
        ending = self.ending_due() if dist.is_main() else 0  # one clock decides for all
        told = (squares, batch.size, self.interrupt.requested, ending)
        squares, read, stop, ending = totals.collect(*told)
        divisor = 1.0 if divided else totals.common_count()

        loss, norm = totals.loss(), squares**0.5 / divisor
        figures = {"step": state.step + 1, **totals.figures(), "lr": self.optimizer.lr, "grad_norm": norm}
        if harm := self.rule.judge(loss, norm):
            figures["skipped"] = harm
            state.skipped += 1
            self.buffers.undo()
            say(f"step {state.step + 1} skipped: {harm}")
        else:
            clip = 1.0 if config.clip is None else min(1.0, config.clip / (norm + 1e-6))
            torch._foreach_mul_(gradients, clip / divisor)
            self.buffers.share()  # before the optimizer averages them over time
            self.optimizer.step()
        state.step += 1
        state.read += int(read)
        self.stopping = stop > 0
        if ending:
            state.ending = [state.step, state.step + int(ending)]
            say(f"time is running out: cooling down over {int(ending)} steps")
        return figures | {self.dataset.unit: state.read}

    def backward(self, batch: Batch) -> tuple[Totals, bool]:
        """The gradient of the weighted sum of all terms' sums, over micro-batches and processes.

        Each term is divided by its global count beforehand where the objective says it; the flag tells. Otherwise the
        count is known when all micro-batches are through: too late to divide the terms, but their gradient can be.
        """
        totals, counts = Totals(self.device), global_counts(self.objective, batch, self.device)
        micros = batch.split(self.micro_batch)
        for i, micro in enumerate(micros, 1):
            synchronise(self.model, i == len(micros))
            loss = self.loss(micro)
            first = counts.get(next(iter(loss.terms)), 1)  # also the count of what modules add
            shares = [term.weight / counts.get(name, first) * term.sum for name, term in loss.terms.items()]
            torch.stack(shares).sum().backward()
            totals.add(loss)
        return totals, bool(counts)

    def loss(self, batch: Batch) -> Loss:
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16(self.device))
        with bf16, listening(self.model) as told:
            return self.objective(self.model, batch, self.state.step).heard(told)

    def multiplier(self, own: Schedule | None = None) -> float:
        """Of the learning rate in the step to come, by the run's schedule or a group's own."""
        state = self.state
        planned = (own or self.config.schedule).multiplier(state.step, self.config.steps)
        if state.ending is None:
            return planned
        first, last = state.ending
        return planned * (last - state.step) / (last - first)

    def ending_due(self) -> int:
        """How many steps of a last cool-down should begin now for the run to end within its time limit; 0: none.

        Cut off at the limit, a run would end with its learning rate still high, which wastes much of what it learned.
        So when a fifth of the time is left and the planned steps need more, as many steps as still fit bring the
        learning rate linearly to zero.
        """
        config, state = self.config, self.state
        if config.time_limit is None or state.ending or not state.step:
            return 0
        left, pace = config.time_limit - state.seconds, state.seconds / state.step
        if left > config.time_limit / 5 or (config.steps - state.step) * pace <= left:
            return 0
        return max(1, int(left / pace) - 1)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, figures: dict[str, Any]) -> bool:
        """Put the objective's averages over the held-out split into `figures[split]`; say whether they are the best."""
        config, state, totals = self.config, self.state, Totals(self.device)
        world, read = dist.world(), 0
        batches = self.dataset.evaluation(config.split, self.micro_batch * world)
        self.model.eval()
        # Compiling a second graph, without gradients, would take longer than most evaluations do.
        eager = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
        with eager, self.optimizer.averaged():
            # Sharded weights are gathered by all processes or none, so each computes as many batches as the others.
            for batch in islice(batches.share(dist.rank(), world), config.evaluate_batches):
                read += 1
                totals.add(self.loss(batch.to(self.device)), share=float(batch.counted))
            reshard(self.model)
        self.model.train()
        totals.collect()
        sums = {name: pair[0].tolist() for name, pair in totals.pairs.items()}
        found = totals.figures() | self.dataset.figures(config.split, sums, read / len(batches))
        figures[config.split], metric = found, config.metric
        if metric not in found:  # too late to refuse: steps would be lost
            say(f"trainer.metric={metric} is not measured ({', '.join(found)} are); going by the loss")
            metric = "loss"
        best = state.best if state.best and state.best["metric"] == metric else None
        better = isfinite(found[metric]) and (best is None or found[metric] < best["value"])
        if better:
            state.best = {"step": state.step, "metric": metric, "value": found[metric]}
        state.stale = 0 if better else state.stale + 1
        return better


def last_step(config: TrainerConfig, state: TrainState) -> int:
    return state.ending[1] if state.ending else config.steps


def out_of_patience(config: TrainerConfig, state: TrainState) -> bool:
    return config.patience is not None and state.stale >= config.patience


def is_over(config: TrainerConfig, state: TrainState) -> bool:
    """Whether nothing is left to be done."""
    return state.step >= last_step(config, state) or out_of_patience(config, state)


def seed_generators(device: torch.device, *numbers: int) -> None:
    """Seed the generators that a model on `device` draws from with a hash of `numbers`.

    torch.manual_seed would do it too, but it takes a millisecond to note for later what a GPU not in use should do.
    """
    seed = int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest()) >> 1
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)
