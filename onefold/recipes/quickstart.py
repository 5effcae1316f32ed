"""The main job: text in, a trained, evaluated, chatting model out, in minutes.

    read → tokenizer → records → size from one dial → pre-train → fine-tune → prefer → evaluate → report

Everything follows from `minutes`, which the stages share, and from how fast this machine is, which is measured once
(training/dial.py) and kept, so that the same command goes on where an interrupted one stopped. The model is a Qwen 3 in
small, so that published formats hold it. Preferences come of its own answers where these can be checked, see
_own_answers.py: for Python, which is the default data.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from onefold.core.config import Config, differences
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.core.progress import Progress, clock, say
from onefold.data.sources import STDLIB
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.preferences import PreferenceData
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.infer.evaluation.evaluate import evaluate
from onefold.infer.model import Model, load
from onefold.objectives.preference import DPO, Preference
from onefold.recipes._own_answers import OwnAnswers, read_requests, to_learn_from
from onefold.study import baselines, forecast, machine
from onefold.study.check import Report
from onefold.study.pages.gain import change
from onefold.study.pages.report import write_report
from onefold.study.results import read_results, write_results
from onefold.training.dial import Size, size_up
from onefold.training.log import read_log
from onefold.training.run import Run, train

PRETRAIN, CHAT, PREFER = "pretrain", "chat", "prefer"
TITLES = {PRETRAIN: "Pre-training", CHAT: "Fine-tuning for chat", PREFER: "Learning from preferences"}
REQUESTS = "requests"  # where those lie that conversations are made of
VOCAB = 4096
CHAT_SHARE, WRITING_SHARE, PREFER_SHARE = 0.18, 0.07, 0.1  # of the minutes, where there is such a stage
LEAST = 5.0  # seconds of a stage
PAIRS = 16  # of a step
SAMPLES = 3


class Quickstart(Config):
    """The dial, which is minutes of training in all, and where things lie."""

    data: str = STDLIB
    minutes: float = 5.0
    chat: str | None = None  # a JSONL of messages to fine-tune on; None: docstring → code pairs, for the default data
    seed: int = 0
    out: Path = Path("runs/quickstart")

    @property
    def prefers(self) -> bool:
        """Whether its answers can be checked: those to requests for Python can."""
        return self.data == STDLIB and self.chat is None

    def seconds(self, share: float | None = None) -> float:
        """A share of the minutes; None: what is left for pre-training."""
        if share is not None:
            return max(LEAST, share * 60 * self.minutes)
        later = CHAT_SHARE if self.chat or self.prefers else 0.0
        return 60 * self.minutes * (1 - later - (WRITING_SHARE + PREFER_SHARE if self.prefers else 0.0))


def run(**settings: Any) -> Path:
    """The whole job; given the same `out` again, it goes on where it stopped. Returns the report's path."""
    job = Quickstart.from_dict(settings)
    if job.minutes <= 0:
        raise UserError(f"minutes={job.minutes:g} leaves no time to train: give a positive number")
    _claim(job)
    began = time.monotonic()
    data = TextData(sources=(Source(path=job.data),), tokenizer=TrainBPE(vocab=VOCAB))
    dataset = data.prepare(job.out / PRETRAIN / "data", keep=True)
    size = _size(job, dataset)
    say(f"pre-training: {size}")
    _whole(pretraining(job, data, size))
    stages = [PRETRAIN]
    if chat_data := _conversations(job, size.context):
        _whole(fine_tuning(job, chat_data, size))
        stages.append(CHAT)
    if job.prefers and (pairs := _pairs(job)):
        _whole(preferring(job, pairs, size))
        stages.append(PREFER)
    page = evaluate_and_report(job, dataset, stages)
    say(f"\ndone in {clock(time.monotonic() - began)}. Look at {page}")
    verb = "chat" if chat_data else "generate"
    prompt = "" if chat_data else " 'Once'"
    say(f"  onefold {verb} {job.out}{prompt}\n  onefold serve {job.out}")
    return page


def recipe(data: str = STDLIB, minutes: float = 5.0) -> Run:
    """Its pre-training as a run of its own, sized for this machine."""
    text = TextData(sources=(Source(path=data),), tokenizer=TrainBPE(vocab=VOCAB))
    job = Quickstart(data=data, minutes=minutes)
    return pretraining(job, text, size_up(job.seconds(), VOCAB))


def tiny(data: str = STDLIB) -> Run:
    return recipe(data, minutes=0.5)


def pretraining(job: Quickstart, data: TextData, size: Size) -> Run:
    return Run(
        data=data.but({"context": size.context}),
        model=size.model(),
        optimizer=size.optimizer(),
        seed=job.seed,
        out=job.out / PRETRAIN,
    ).but(
        {
            "trainer": {
                "steps": size.steps,
                "batch": size.batch,
                "compile": size.compiled,
                "precision": size.precision,
                "schedule": {"kind": "wsd", "cooldown": 0.6},
                "time_limit": job.seconds(),
                "evaluate_every": max(1, size.steps // 20),
                "evaluate_batches": 64 // size.batch + 1,
                "checkpoint_every": max(1, size.steps // 4),
            }
        }
    )


def fine_tuning(job: Quickstart, data: ChatData, size: Size) -> Run:
    """As many steps as fit its share of the time, at a tenth of the learning rate, on what an assistant should say."""
    steps = max(10, round(job.seconds(CHAT_SHARE) / size.seconds_per_step))
    return Run(
        data=data,
        start=str(job.out / PRETRAIN),
        optimizer=size.optimizer(0.1),
        seed=job.seed,
        out=job.out / CHAT,
    ).but(
        {
            "trainer": {
                "steps": steps,
                "batch": size.batch,
                "precision": size.precision,
                "schedule": {"kind": "linear"},
                "time_limit": 1.5 * job.seconds(CHAT_SHARE),
                "evaluate_every": max(1, steps // 4),
                "evaluate_batches": 64 // size.batch + 1,
            }
        }
    )


def preferring(job: Quickstart, pairs: Path, size: Size) -> Run:
    """DPO on `pairs`, twice at the most: a pair's two answers are about as many tokens as half a row."""
    with pairs.open() as file:
        twice = 2 * sum(1 for _ in file) // PAIRS
    step = size.seconds_per_step * 2 * PAIRS / size.batch  # at the most
    steps = max(4, min(twice, round(job.seconds(PREFER_SHARE) / step)))
    return Run(
        data=PreferenceData(path=str(pairs), context=size.context),
        start=str(job.out / CHAT),
        objective=Preference(loss=DPO(beta=0.1)),
        optimizer=size.optimizer(0.03),
        seed=job.seed,
        out=job.out / PREFER,
    ).but(
        {
            "trainer": {
                "steps": steps,
                "batch": PAIRS,
                "precision": size.precision,
                "schedule": {"kind": "linear", "warmup": 0.1},
                "time_limit": 1.5 * job.seconds(PREFER_SHARE),
                "evaluate_every": max(1, steps // 4),
            }
        }
    )


def evaluate_and_report(job: Quickstart, dataset: Dataset, stages: list[str]) -> Path:
    """Bits per byte of the files held out, beside what counting and xz make of them; samples; the page."""
    model = load(job.out / PRETRAIN)
    stride = max(1, dataset.context // 2)
    score = evaluate(model.network, dataset.evaluation("held_out", 8, stride=stride), dataset.bytes("held_out"))
    with Progress("baselines", total=4) as bar:
        yardsticks = baselines.measure(
            dataset.text("train"), dataset.text("held_out"), progress=lambda name: bar.update(1, now=name)
        )
    seconds, curve, rates = _curve(job)
    primed = next(b for b in yardsticks if b.name == "primed xz")
    estimate = forecast.minutes_until(
        primed.bits_per_byte, seconds, curve, rates, name="primed xz", final=score.bits_per_byte
    )
    final = {"bits_per_byte": score.bits_per_byte, "loss": score.loss, "perplexity": score.perplexity}
    gain = None
    if PREFER in stages:
        held_out = read_requests(job.out / REQUESTS / "held_out.jsonl")
        gain = _own_answers(job).gain(job.out / CHAT, job.out / PREFER, held_out)
    write_results(
        job.out,
        title="quickstart",
        final=final | {"parameters": model.parameters_count, "peak_memory": machine.peak_memory()},
        baselines=yardsticks,
        estimate=estimate,
        samples=list(_samples(job, dataset, model, stages[-1])),
        preferences=gain,
        data={"name": job.data, **dataset.facts},
        machine=machine.facts(),
        stages=[{"name": name, "folder": name, "title": TITLES[name]} for name in stages],
        reproduce=[f"onefold quickstart data={job.data} minutes={job.minutes:g} seed={job.seed} out={job.out}"],
    )
    _show(score.bits_per_byte, yardsticks, estimate.text)
    if gain:
        say(change(gain))
    return write_report(job.out)


def check(report: Report) -> None:
    """Half a minute of training on this machine: whatever came out is reported, and must beat counts of pairs."""
    job = Quickstart(minutes=0.5, out=Path("runs/check/quickstart"))
    run(**job.to_dict())
    found = read_results(job.out)
    scores = {b["name"]: b["bits_per_byte"] for b in found["baselines"]}
    report.less("held-out bits per byte against pairs of bytes", found["final"]["bits_per_byte"], scores["bigram"])
    for name, bits in scores.items():
        report.note(f"bits per byte, {name}", round(bits, 3))
    if gain := found.get("preferences"):
        report.note("answers that pass the check, before and after", [gain[n]["value"] for n in ("before", "after")])


def _claim(job: Quickstart) -> None:
    """One job, one folder."""
    kept = job.out / "quickstart.json"
    if kept.is_file():
        before = Quickstart.from_json(kept.read_text(), str(kept))
        if changes := differences(before.but({"out": str(job.out)}).to_dict(), job.to_dict()):
            told = ", ".join(f"{name} ({old!r} there, {new!r} here)" for name, (old, new) in changes.items())
            raise UserError(f"{job.out} holds another quickstart; it differs in {told}. Give another out=")
    atomic_write(kept, job.to_json() + "\n")


def _size(job: Quickstart, dataset: Dataset) -> Size:
    """Measured at the first start, kept for all later ones."""
    kept = job.out / "size.json"
    if kept.is_file():
        return Size.from_json(kept.read_text(), str(kept))
    size = size_up(job.seconds(), VOCAB, tokens=dataset.facts["train"]["tokens"])
    atomic_write(kept, size.to_json() + "\n")
    return size


def _conversations(job: Quickstart, context: int) -> ChatData | None:
    if job.chat:
        return ChatData(path=job.chat, context=context)
    if job.prefers:
        train, held_out = _requests(job)
        return ChatData(path=str(train), validation=str(held_out), context=context)
    say("no fine-tuning: give chat=FILE, a JSONL with messages, to get a model that answers")
    return None


def _requests(job: Quickstart) -> tuple[Path, Path]:
    """Files of requests for Python and the functions that they are made of, shuffled; those of held-out files apart."""
    files = [job.out / REQUESTS / f"{split}.jsonl" for split in ("held_out", "train")]
    if not files[-1].is_file():
        found: dict[str, list[str]] = {file.stem: [] for file in files}
        with Progress("reading functions", None, "functions") as bar:
            for split, _, messages in ChatData(pairs=(Source(path=job.data),)).conversations():
                found[split].append(json.dumps({"messages": messages}) + "\n")
                bar.update()
        for file in files:  # the last one tells that all are there
            Random(job.seed).shuffle(found[file.stem])
            atomic_write(file, "".join(found[file.stem]))
    return files[1], files[0]


def _pairs(job: Quickstart) -> Path | None:
    """What is preferred to what, after fine-tuning; None: too little."""
    train, held_out = _requests(job)
    count = sum(1 for _ in read_requests(held_out))
    requests = to_learn_from(read_requests(train))
    return _own_answers(job).pairs(job.out / CHAT, requests, count, job.seconds(WRITING_SHARE))


def _own_answers(job: Quickstart) -> OwnAnswers:
    return OwnAnswers(job.out / "answers", job.seed)


def _whole(run: Run) -> None:
    if train(run).status == "interrupted":
        raise KeyboardInterrupt


def _curve(job: Quickstart) -> tuple[list[float], list[float], list[float]]:
    """Seconds, held-out bits per byte and learning rates of the pre-training's evaluations."""
    points = [r for r in read_log(job.out / PRETRAIN / "log.jsonl") if "held_out" in r]
    return (
        [r["seconds"] for r in points],
        [r["held_out"]["bits_per_byte"] for r in points],
        [r["lr"] for r in points],
    )


def _samples(job: Quickstart, dataset: Dataset, model: Model, last: str) -> Iterator[dict[str, Any]]:
    """Beginnings of held-out files continued, and, after fine-tuning, held-out requests answered."""
    language = "python" if job.data == STDLIB else None
    settings = {"temperature": 0.7, "top_p": 0.95, "seed": job.seed, "max_new_tokens": 160}
    for number, document in enumerate(dataset.text("held_out")):
        if number == SAMPLES:
            break
        prompt = document.text[:300]
        text = model.generate(prompt, **settings)
        yield {"title": document.name, "prompt": prompt, "text": text, "language": language, "settings": settings}
    if last == PRETRAIN:
        return
    tuned = load(job.out / last)
    for request in (
        "Write a Python function `add(a, b)`. Return the sum of a and b.",
        "Write a Python function. Return True if the path exists.",
    ):
        messages = [{"role": "user", "content": request}]
        answer = tuned.chat(messages, **settings)
        yield {
            "messages": [*messages, {"role": "assistant", "content": answer}],
            "language": language,
            "settings": settings,
        }


def _show(ours: float, yardsticks: list[baselines.Baseline], estimate: str) -> None:
    """The table at the end, best first."""
    table = Table(title="bits per byte of the files held out (less is better)", title_justify="left")
    table.add_column("")
    table.add_column("bits per byte", justify="right")
    rows = [("[bold]this model[/bold]", ours), *((b.name, b.bits_per_byte) for b in yardsticks)]
    for name, bits in sorted(rows, key=lambda row: row[1]):
        table.add_row(name, f"{bits:.3f}")
    console = Console(stderr=True)
    console.print(table)
    console.print(estimate)
