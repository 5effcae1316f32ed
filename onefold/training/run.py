"""A run: everything that decides what comes out of a training, and the folder that it lies in.

    out/config.json     the run, as it was last started      out/log.jsonl      a record for every step
    out/run.json        what was measured at the start       out/checkpoints/   see state.py
    out/data/           prepared data                        out/processor/     of the model that it began with

Starting a run again in the same folder goes on where it stopped. It must be the same run: the same config but for what
does not change the way to a given step, and the same data, wherever they lie now.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from onefold.adapt.every import Steps, adapt
from onefold.core import dist
from onefold.core.batch import Batch
from onefold.core.config import Config, Slot
from onefold.core.device import pick
from onefold.core.errors import UserError
from onefold.core.progress import clock, say
from onefold.data.every import AnyData, Prepared
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.reader import PictureReader
from onefold.infer.rollouts.data import RolloutData, RolloutDataset
from onefold.interop.adapted import Base, Early, trained
from onefold.interop.artifact import FILE, ModelConfig, read_card, read_model_config, write_artifact
from onefold.interop.loaded import Loaded
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.interop.tokenizers.processors import Processor, load_processor, save_processor
from onefold.objectives.base import body_of
from onefold.objectives.every import AnyObjective, check_reads
from onefold.objectives.language import NextToken
from onefold.training import estimate, policy, reference
from onefold.training.folder import claimed, read_facts, write_facts
from onefold.training.log import read_log
from onefold.training.optimizers.optim import AdafactorConfig, AdamWConfig, MuonConfig, SGDConfig
from onefold.training.processes import parallel
from onefold.training.state import Checkpoints, TrainState, copy_tensors
from onefold.training.trainer import Objective, Trainer, TrainerConfig, is_over

PROCESSOR = "processor"


class Run(Config):
    """The root of all configs: one training."""

    data: Annotated[AnyData | RolloutData, Slot()]
    model: Annotated[ModelConfig, Slot()] | None = None  # None: that of `start`
    objective: Annotated[AnyObjective, Slot()] = NextToken()
    optimizer: Annotated[AdamWConfig | MuonConfig | SGDConfig | AdafactorConfig, Slot()] = AdamWConfig()
    trainer: TrainerConfig = TrainerConfig()
    start: str | None = None  # a run, artifact, published model or hub id whose weights to begin with
    adapt: Steps = ()  # surgery on the weights of `start`, in this order; what it leaves alone stays as it was
    frozen: dict[str, str] = {}  # models that the objective consults: name → where
    seed: int = 0
    out: Path = Path("runs/run")

    @model_validator(mode="after")
    def _comes_to_its_end(self) -> "Run":
        until = getattr(self.objective, "until", None)  # of its first stage
        if until is not None and until >= self.trainer.steps:
            raise ValueError(f"objective.until={until} leaves no second stage: trainer.steps is {self.trainer.steps}")
        return self


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    run: Run = field(repr=False)
    status: str  # "finished", "stopped early" or "interrupted"
    step: int
    best: dict[str, Any] | None  # {"step", "metric", "value"} of the best evaluation
    dataset: Prepared | RolloutDataset | None = field(default=None, repr=False)  # None where nothing was left to do

    @property
    def out(self) -> Path:
        return self.run.out

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint."""
        return self.out / "checkpoints" / str(self.step)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl, one for every logged step."""
        return read_log(self.out / "log.jsonl")


def train(run: Run) -> Result:
    """Train `run`, or go on with it where it stopped. Under torchrun every process calls this.

    Errors: UserError for what the user can mend; whatever is in `run.out` by then stays there.
    """
    device = pick(run.trainer.device)
    dist.init(device)
    parallel.check_rows(run.trainer.batch, dist.world())
    with claimed(run.out, run) as before:
        kept = trained if run.adapt else own_weights
        checkpoints = Checkpoints(run.out / "checkpoints", run.trainer.keep, run.trainer.history, kept)
        good = checkpoints.newest_good()
        state = checkpoints.stand(good) if good else TrainState()
        if before and run.trainer.steps > before["trainer"]["steps"]:
            state.ending = None  # it was for a shorter run
        if good and is_over(run.trainer, state):
            say(f"{run.out} is finished after {state.step:,} steps; a larger trainer.steps would continue it")
            return Result(run, "finished", state.step, state.best)
        trainer = assemble(run, device, checkpoints, good, state)
        if good:
            say(resumption(run, before, state))
        with trainer.loader:
            status = trainer.run(run.out)
    told = {
        "finished": f"finished after {state.step:,} steps: {run.out}",
        "stopped early": f"no better evaluation in {state.stale}: stopped after {state.step:,} steps: {run.out}",
        "interrupted": f"saved {run.out}/checkpoints/{state.step}; the same command goes on from there",
    }
    say(told[status])
    return Result(run, status, state.step, state.best, trainer.dataset)


def assemble(run: Run, device: torch.device, checkpoints: Checkpoints, good: Path | None, state: TrainState) -> Trainer:
    """Build everything that training needs, from the start or as the checkpoint `good` has it."""
    early = Early(run.adapt)
    start = beginning(run, good, early)
    begun = {"state": read_facts(run.out).get("data")} if isinstance(run.data, ImageData) else {}  # a store may grow
    dataset = run.data.prepare(run.out / "data", first_processor(run, None if good else start), keep=True, **begun)
    check_reads(run.objective, dataset.batch, run.data)
    config = read_model_config(read_card(good), good / FILE) if good else model_config(run, dataset, start)
    frozen = reference.consulted(run, dataset, device)
    consulted = reference.recognised(run, good, frozen)
    objective = run.objective.build(frozen)
    refers = hasattr(objective, "refer")
    asked = reference.asked(run, dataset, good) if refers else None
    copied = policy.begins_as_reference(run, objective)
    if (copied or (refers and not asked)) and start is None:
        start = beginning(run, None, early)

    memory = estimate.check_memory(config, run.optimizer, device, run.adapt)
    torch.manual_seed(run.seed)
    model, base = begin(config, start, run, good, early) if start else (config.build(), None)
    computed = start.computed if start and copied else None
    del start
    near = policy.near(run, objective, dataset, model, device)
    if near and (copied or reference.NAME in run.frozen):  # else it is what is adapted, which `begin` has recognised
        with near() as other:
            consulted |= reference.recognised(run, good, {reference.NAME: other}, computed)
    parallel.place(model, run.trainer.parallel, device, run.trainer.compile)
    if refers and not asked:
        asked = reference.ask(run, dataset, objective, model, device)
    optimizer = run.optimizer.build(model)
    if good:
        checkpoints.restore(good, model, optimizer)
    facts = weigh(run, config, model, objective, dataset, device, memory)
    micro_batch = facts["micro_batch"]
    if isinstance(dataset, RolloutDataset):
        dataset.follow(policy.policy(run, objective, model, near, device, micro_batch))
    if hasattr(objective, "in_chunks"):  # it compares the rows of a batch, and reads them in parts itself
        objective, micro_batch = objective.in_chunks(micro_batch), run.trainer.batch // dist.world()

    def artifact(folder: Path, tensors: dict[str, Tensor]) -> None:
        card = {"step": state.step, dataset.unit: state.read, "best": state.best, "run": run.to_dict(), **facts}
        card |= {"classes": list(dataset.classes)} if dataset.classes else {}
        card |= dataset.facts.get("card", {}) | ({reference.NAME: asked} if asked else {})
        card |= {reference.CONSULTED: consulted} if consulted else {}
        more = {"adapt": run.to_dict()["adapt"], "base": base.told(folder)} if base else None
        write_artifact(folder, config, tensors, dataset.processor, card, more=more)

    return Trainer(
        config=run.trainer,
        micro_batch=micro_batch,
        model=model,
        objective=objective,
        optimizer=optimizer,
        dataset=dataset,
        loader=dataset.loader("train", run.trainer.batch, run.seed, dist.rank(), dist.world(), state.loader or None),
        state=state,
        checkpoints=checkpoints,
        artifact=artifact,
        seed=run.seed,
        device=device,
        mfu=lambda rate: rate * facts["flops"] / (facts["speed"] * dist.world()),
    )


def resumption(run: Run, before: Mapping[str, Any] | None, state: TrainState) -> str:
    """A line about going on, and about a schedule that was made longer."""
    steps, old = run.trainer.steps, before["trainer"]["steps"] if before else run.trainer.steps
    line = f"going on in {run.out} from step {state.step:,} of {steps:,}"
    was, now = (run.trainer.schedule.multiplier(state.step, n) for n in (old, steps))
    if abs(was - now) > 1e-6:
        line += (
            f"; the schedule now ends there, so the learning rate goes on at {now:.0%} of its peak instead of {was:.0%}"
        )
    return line


def beginning(run: Run, good: Path | None, early: Early) -> Loaded | None:
    """The model to begin with, whose own adapters become a part of its weights. Going on, only an adapted run needs it.

    early: quantises it while it is read, if it can.

    Errors: UserError when a run adapts nothing.
    """
    if run.adapt and not run.start:
        raise UserError("adapt changes a model that is there: say which one with start=")
    if run.start is None or (good and not run.adapt):
        return None
    return early.plain(open_model(run.start, "cpu", torch.float32, arrived=early), f"start={run.start}")


def begin(
    config: ModelConfig, start: Loaded, run: Run, good: Path | None, early: Early
) -> tuple[nn.Module, Base | None]:
    """A model with the weights of `start`, which is used up, adapted; what its checkpoints will say they are beside.

    What the start has not (a new classifier, the vectors of new tokens, which begin alike) is trained in full.
    """
    base = Base.of(str(run.start), start, early.fingerprints) if run.adapt else None
    if config == start.config:
        model, new = start.model.train(), []
    else:
        if early.fingerprints:  # another model takes its weights as plain numbers
            early = Early(())
            start = beginning(run, good, early)
        model, given = config.build(), own_weights(start.model)
        copy_tensors(model.adopt(given), own_weights(model), Path(str(run.start)))
        new = [p for name, p in model.named_parameters() if name not in given or given[name].shape != p.shape]
    if base is None:
        return model, None
    if good:
        Base.read(read_card(good), good).check(start, str(run.out), known=early.fingerprints)
    adapt(model, run.adapt)
    for parameter in new:
        parameter.requires_grad_(True)
    return model, base


def first_processor(run: Run, start: Loaded | None) -> Processor | None:
    """How the model to begin with reads, kept in the run's folder so that resuming does not need that model.

    Errors: UserError when it reads something else than the data are.
    """
    place, sees = run.out / PROCESSOR, isinstance(run.data, ImageData)
    if start and start.processor and isinstance(start.processor, PictureReader) != sees:
        raise UserError(f"start={run.start} is a model of {'text' if sees else 'pictures'}, the data are not")
    if start and dist.is_main():
        shutil.rmtree(place, ignore_errors=True)
        if start.processor:
            save_processor(place, start.processor)
    dist.barrier()
    return load_processor(place) if run.start and place.is_dir() else None


def model_config(run: Run, dataset: Prepared | RolloutDataset, start: Loaded | None) -> ModelConfig:
    """The model's config; that of `start`, fitted to the data, where none is given.

    Errors: UserError when it does not fit the data.
    """
    if run.model is not None:
        return dataset.fit(run.model, grow=False)
    if start is None:
        raise UserError("a run needs a model, or a start whose model it goes on with")
    going_on = getattr(run.objective, "going_on", body_of)  # an objective may need more of it, or another head
    return dataset.fit(going_on(start.config, len(dataset.classes)), grow=True)


def two_rows(run: Run, dataset: Prepared | RolloutDataset) -> Batch:
    """Rows as they are read: two a process, since batch norm cannot do with one."""
    if isinstance(dataset, RolloutDataset):  # nobody has written any
        return dataset.longest(2)
    with dataset.loader("train", 2 * dist.world(), run.seed, dist.rank(), dist.world()) as loader:
        return next(iter(loader))


def weigh(
    run: Run,
    config: ModelConfig,
    model: nn.Module,
    objective: Objective,
    dataset: Prepared | RolloutDataset,
    device: torch.device,
    memory: tuple[int, int],
) -> dict[str, Any]:
    """What the run costs on this machine, said in a line. Measured at the first start and kept for exact resuming.

    memory: bytes that the parameters and all that goes with them need, and that were free before.

    Errors: UserError when the data are not those of the first start.
    """
    kept, data = read_facts(run.out), dataset.facts["hash"]
    if kept.get("data", data) != data:
        raise UserError(
            f"the data have changed since {run.out} was begun; give another out= (or the data as they were)"
        )
    machine = f"{device.type}, {dist.world()} processes"
    if kept.get("machine") == machine:
        return kept | {"micro_batch": run.trainer.micro_batch or kept["micro_batch"]}
    row = two_rows(run, dataset)
    rows, bf16 = run.trainer.batch // dist.world(), run.trainer.bf16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        few = min(row.rows, run.trainer.micro_batch or row.rows)
        longest = dataset.longest(few) if hasattr(dataset, "longest") else row.split(few)[0]  # else all are as long
        each = estimate.row_bytes(model, objective, longest.to(device))
    parallel.reshard(model)
    needed, free = memory
    speed = estimate.machine_speed(device, bf16)
    facts = {
        "data": data,
        "machine": machine,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": estimate.count_flops(config, objective, row, run.adapt),  # of a token, an image
        "speed": speed,
        "row_bytes": each,
        "micro_batch": run.trainer.micro_batch or estimate.fit_rows(rows, each, free - needed, device),
    }
    facts = dist.broadcast(facts)
    write_facts(run.out, facts)
    read = run.trainer.steps * run.trainer.batch * row.size // row.slots
    seconds = read * facts["flops"] / (speed * dist.world() * estimate.USUAL_SHARE)
    total = needed + facts["micro_batch"] * each
    shown = f", {facts['trained']:,} of them trained" if facts["trained"] < facts["parameters"] else ""
    say(
        f"{facts['parameters']:,} parameters{shown}, {read:,} {dataset.unit}: "
        f"about {clock(seconds)} at this machine's speed; "
        f"{facts['micro_batch']} of {rows} rows at a time, about {total / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    )
    return facts
