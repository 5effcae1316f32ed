"""The main job: text in, a trained, evaluated, chatting model out, in minutes.

    read → tokenizer → records → size from one dial → pre-train → fine-tune → evaluate → report

Everything follows from `minutes` and from how fast this machine is, which is measured once (training/dial.py) and kept,
so that the same command goes on where an interrupted one stopped. The model is a Qwen 3 in small, so that published
formats hold it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onefold.core.config import Config, differences
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.core.progress import Progress, clock, say
from onefold.data.sources import STDLIB
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.infer.evaluation.evaluate import evaluate
from onefold.infer.model import Model, load
from onefold.study import baselines, forecast, machine
from onefold.study.check import Report
from onefold.study.report import write_report
from onefold.study.results import read_results, write_results
from onefold.training.dial import Size, size_up
from onefold.training.log import read_log
from onefold.training.run import Run, train

PRETRAIN, CHAT = "pretrain", "chat"
VOCAB = 4096
CHAT_SHARE = 0.15  # of the minutes of pre-training, for fine-tuning
SAMPLES = 3


class Quickstart(Config):
    """The dial, and where things lie."""

    data: str = STDLIB
    minutes: float = 5.0
    chat: str | None = None  # a JSONL of messages to fine-tune on; None: docstring → code pairs, for the default data
    seed: int = 0
    out: Path = Path("runs/quickstart")


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
    if train(pretraining(job, data, size)).status == "interrupted":
        raise KeyboardInterrupt
    chat_data = _conversations(job, size.context)
    if chat_data and train(fine_tuning(job, chat_data, size)).status == "interrupted":
        raise KeyboardInterrupt
    page = evaluate_and_report(job, dataset, chatty=chat_data is not None)
    say(f"\ndone in {clock(time.monotonic() - began)}. Look at {page}")
    verb = "chat" if chat_data else "generate"
    prompt = "" if chat_data else " 'Once'"
    say(f"  onefold {verb} {job.out}{prompt}\n  onefold serve {job.out}")
    return page


def recipe(data: str = STDLIB, minutes: float = 5.0) -> Run:
    """Its pre-training as a run of its own, sized for this machine."""
    text = TextData(sources=(Source(path=data),), tokenizer=TrainBPE(vocab=VOCAB))
    job = Quickstart(data=data, minutes=minutes)
    return pretraining(job, text, size_up(minutes * 60, VOCAB))


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
                "time_limit": job.minutes * 60,
                "evaluate_every": max(1, size.steps // 20),
                "evaluate_batches": 64 // size.batch + 1,
                "checkpoint_every": max(1, size.steps // 4),
            }
        }
    )


def fine_tuning(job: Quickstart, data: ChatData, size: Size) -> Run:
    """CHAT_SHARE of the steps, at a tenth of the learning rate, on what an assistant should say."""
    steps = max(10, round(size.steps * CHAT_SHARE))
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
                "time_limit": max(10.0, job.minutes * 60 * CHAT_SHARE * 1.5),
                "evaluate_every": max(1, steps // 4),
                "evaluate_batches": 64 // size.batch + 1,
            }
        }
    )


def evaluate_and_report(job: Quickstart, dataset: Dataset, chatty: bool) -> Path:
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
    stages = [{"name": PRETRAIN, "folder": PRETRAIN, "title": "Pre-training"}]
    if chatty:
        stages.append({"name": CHAT, "folder": CHAT, "title": "Fine-tuning for chat"})
    write_results(
        job.out,
        title="quickstart",
        final=final | {"parameters": model.parameters_count, "peak_memory": machine.peak_memory()},
        baselines=yardsticks,
        estimate=estimate,
        samples=list(_samples(job, dataset, model, chatty)),
        data={"name": job.data, **dataset.facts},
        machine=machine.facts(),
        stages=stages,
        reproduce=[f"onefold quickstart data={job.data} minutes={job.minutes:g} seed={job.seed} out={job.out}"],
    )
    _show(score.bits_per_byte, yardsticks, estimate.text)
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
    size = size_up(job.minutes * 60, VOCAB, tokens=dataset.facts["train"]["tokens"])
    atomic_write(kept, size.to_json() + "\n")
    return size


def _conversations(job: Quickstart, context: int) -> ChatData | None:
    if job.chat:
        return ChatData(path=job.chat, context=context)
    if job.data == STDLIB:
        return ChatData(pairs=(Source(path=job.data),), context=context)
    say("no fine-tuning: give chat=FILE, a JSONL with messages, to get a model that answers")
    return None


def _curve(job: Quickstart) -> tuple[list[float], list[float], list[float]]:
    """Seconds, held-out bits per byte and learning rates of the pre-training's evaluations."""
    points = [r for r in read_log(job.out / PRETRAIN / "log.jsonl") if "held_out" in r]
    return (
        [r["seconds"] for r in points],
        [r["held_out"]["bits_per_byte"] for r in points],
        [r["lr"] for r in points],
    )


def _samples(job: Quickstart, dataset: Dataset, model: Model, chatty: bool) -> Iterator[dict[str, Any]]:
    """Beginnings of held-out files continued, and, after fine-tuning, held-out requests answered."""
    language = "python" if job.data == STDLIB else None
    settings = {"temperature": 0.7, "top_p": 0.95, "seed": job.seed, "max_new_tokens": 160}
    for number, document in enumerate(dataset.text("held_out")):
        if number == SAMPLES:
            break
        prompt = document.text[:300]
        text = model.generate(prompt, **settings)
        yield {"title": document.name, "prompt": prompt, "text": text, "language": language, "settings": settings}
    if not chatty:
        return
    tuned = load(job.out / CHAT)
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
