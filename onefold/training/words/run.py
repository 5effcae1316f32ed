"""A training of word vectors, and the folder that it lies in, which is that of any run (run.py).

It has a loop of its own because a step of the house's trainer is a batch, a graph and an optimizer, and a step of
these is a word: 10⁵ to 10⁶ of them a second, in the cache of one core. What is around the loop is shared: config,
folder, log, checkpoints, Ctrl-C, and going on where it stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from onefold.core.config import Config, Slot
from onefold.core.cores import cores
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.core.progress import Progress, say
from onefold.data.text.words import WordCorpus, WordData
from onefold.interop.words.word_vectors import write_artifact
from onefold.models.words.word_vectors import WordVectors
from onefold.training.folder import claimed, read_facts, write_facts
from onefold.training.interrupt import Interrupt
from onefold.training.log import Log
from onefold.training.state import FORMAT, Checkpoints, TrainState
from onefold.training.words.glove import GloveConfig
from onefold.training.words.skipgram import SkipGramConfig, kernels

ROUND = 25  # steps for each thread between two looks at the clock


class WordTrainerConfig(Config):
    """What computes, and what is kept."""

    threads: int | None = Field(default=None, ge=1)  # None: one a core; with 1 the same run gives the same bits
    checkpoint_every: int = Field(default=5000, ge=1)  # steps, of 10,000 words or 50,000 pairs
    keep: int = Field(default=1, ge=1)  # checkpoints


class WordRun(Config):
    """The root of all configs of a training of word vectors."""

    kind: Literal["words"] = "words"
    data: WordData = WordData()
    model: Annotated[SkipGramConfig | GloveConfig, Slot()] = SkipGramConfig()
    trainer: WordTrainerConfig = WordTrainerConfig()
    seed: int = Field(default=0, ge=0)
    out: Path = Path("runs/words")


class Method(Protocol):
    """SkipGram, Glove: numbered steps over `tensors`, each of which may run in any thread."""

    unit: str  # what a step reads
    steps: int
    tensors: dict[str, np.ndarray]

    def rate(self, step: int) -> float: ...
    def step(self, number: int) -> tuple[float, int, int]: ...  # loss, of how many, read
    def vectors(self) -> np.ndarray: ...


@dataclass(frozen=True)
class WordResult:
    """What became of a training."""

    run: WordRun = field(repr=False)
    status: str  # "finished" or "interrupted"
    step: int
    vectors: WordVectors = field(repr=False)
    parameters: int  # of both matrices, of which `vectors` is what is used
    facts: dict[str, Any] = field(repr=False)  # of the corpus

    @property
    def out(self) -> Path:
        return self.run.out


def train(run: WordRun) -> WordResult:
    """Train `run`, or go on with it where it stopped.

    Errors: UserError for what the user can mend; whatever is in `run.out` by then stays there.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("word vectors are trained by the threads of one process: start it without torchrun")
    kernels()  # what is missing is told before a corpus is read
    with claimed(run.out, run) as before:
        checkpoints = Checkpoints(run.out / "checkpoints", run.trainer.keep)
        good = checkpoints.newest_good()
        state = checkpoints.stand(good) if good else TrainState()
        corpus = run.data.prepare(run.out / "data", keep=bool(good))
        _check_data(run.out, corpus)
        method = run.model.build(corpus, run.out / "data", run.seed)
        if good:
            _restore(method, good)
        if state.step >= method.steps:
            say(f"{run.out} is finished after {state.step:,} steps")
            return _result(run, "finished", state, method, corpus)
        if before and good:
            say(f"going on in {run.out} from step {state.step:,} of {method.steps:,}")
        status = _loop(run, method, corpus, state, checkpoints)
    done = state.step
    told = {
        "finished": f"finished after {done:,} steps: {run.out}",
        "interrupted": f"saved {run.out}/checkpoints/{done}; the same command goes on from there",
    }
    say(told[status])
    return _result(run, status, state, method, corpus)


def _loop(run: WordRun, method: Method, corpus: WordCorpus, state: TrainState, checkpoints: Checkpoints) -> str:
    """Rounds of steps, shared out to the threads; between rounds none runs, so that what is saved is whole."""
    threads = run.trainer.threads or cores()
    every, started = run.trainer.checkpoint_every, time.monotonic() - state.seconds
    with (
        Interrupt() as interrupt,
        Log(run.out, state.step) as log,
        Progress("training", method.steps, "steps", state.step) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        while state.step < method.steps:
            end = min(state.step + ROUND * threads, method.steps, (state.step // every + 1) * every)
            began, steps = time.monotonic(), range(state.step, end)
            losses, counts, read = (sum(figures) for figures in zip(*pool.map(method.step, steps)))
            state.step, state.read = end, state.read + read
            state.seconds = time.monotonic() - started
            loss, pace = losses / max(counts, 1), read / (time.monotonic() - began)
            if not np.isfinite(loss):
                raise UserError(f"the loss is no number any more at step {end}: give a smaller model.rate")
            figures = {method.unit: state.read, "loss": loss, "lr": method.rate(end - 1), "seconds": state.seconds}
            log.write({"step": end, **figures, f"{method.unit}_per_second": pace})
            bar.update(len(steps), loss=float(loss), **{f"{method.unit}/s": f"{pace:,.0f}"})
            if interrupt.requested or end % every == 0 or end == method.steps:
                _save(run, method, corpus, state, checkpoints)
            if interrupt.requested and end < method.steps:
                return "interrupted"
    return "finished"


def _save(run: WordRun, method: Method, corpus: WordCorpus, state: TrainState, checkpoints: Checkpoints) -> None:
    with atomic_folder(checkpoints.folder / str(state.step)) as folder:
        card = {"step": state.step, method.unit: state.read, "run": run.to_dict(), "data": corpus.facts}
        write_artifact(folder, _vectors(method, corpus), card)
        (folder / "state").mkdir()
        save_file(method.tensors, folder / "state" / "tensors.safetensors")
        (folder / "state" / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(state)}, indent=1))
    for step in checkpoints.steps()[: -run.trainer.keep]:
        shutil.rmtree(checkpoints.folder / str(step))


def _restore(method: Method, good: Path) -> None:
    saved = load_file(good / "state" / "tensors.safetensors")
    for name, tensor in method.tensors.items():
        tensor[:] = saved[name]


def _check_data(out: Path, corpus: WordCorpus) -> None:
    facts: Mapping[str, Any] = read_facts(out)
    if facts.get("data", corpus.facts["hash"]) != corpus.facts["hash"]:
        raise UserError(f"the data have changed since {out} was begun; give another out= (or the data as they were)")
    write_facts(out, {"data": corpus.facts["hash"]})


def _result(run: WordRun, status: str, state: TrainState, method: Method, corpus: WordCorpus) -> WordResult:
    parameters = method.tensors["vectors"].size + method.tensors["contexts"].size
    return WordResult(run, status, state.step, _vectors(method, corpus), parameters, corpus.facts)


def _vectors(method: Method, corpus: WordCorpus) -> WordVectors:
    return WordVectors(corpus.vocabulary.words, method.vectors())
