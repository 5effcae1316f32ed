"""A synthetic world of teaching: questions about digits whose answers are known, a teacher that is a program.

    sum 3 1 4 2 0 2   the sum modulo 5, which takes a step for each digit     last 3 1 4 2 0 2   read off at once

Nothing here says anything about what large models know.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from onefold.core.files import atomic_write
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.messages import chat_ids
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, load
from onefold.infer.teaching.teacher import Asked, Written
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.position import RotaryConfig
from onefold.study.check import whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

SEEDS = (0, 1, 2)
CONTEXT, VOCAB = 40, 320
MODULUS, DIGITS = 5, 6
STEPS, AT_ONCE = "Work step by step.", "Answer at once."
TESTED = 200  # questions of each kind
Message = dict[str, str]


class Program:
    """The teacher: always right; it shows its steps where the system asks for them."""

    name = "program"

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for i, one in enumerate(asked):
            said = {message["role"]: message["content"] for message in one.messages}
            yield i, Written(solve(said["user"], said.get("system") == STEPS), "stop")


def solve(question: str, steps: bool) -> str:
    """The right answer, which ends in a digit."""
    kind, *digits = question.split()
    if kind == "last":
        return digits[-1]
    sums = [sum(map(int, digits[: n + 1])) % MODULUS for n in range(len(digits))]
    return " ".join(map(str, sums)) if steps else str(sums[-1])


def questions(kind: str, count: int, random: Random) -> list[str]:
    """Different ones."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join([kind, *(str(random.randrange(MODULUS)) for _ in range(DIGITS))])] = None
    return list(found)


def small(vocab: int = VOCAB, context: int = CONTEXT) -> DecoderConfig:
    """The shape of all students."""
    block = BlockConfig(mixer=AttentionConfig(heads=4, position=RotaryConfig()), ffn=GatedMLPConfig(width=128))
    return DecoderConfig(vocab=vocab, width=64, depth=2, context=context, block=block, init="fan_in")


def reader(
    file: Path, out: Path, seed: int, context: int, vocab: int, steps: int, changes: Mapping[str, Any] | None = None
) -> Path:
    """The run of a small model that reads the texts of a file, and no conversations. changes: as `student`'s."""
    run = Run(
        data=TextData(sources=(Source(path=str(file)),), context=context, tokenizer=TrainBPE(vocab=vocab)),
        model=small(vocab, context),
        optimizer=AdamWConfig(lr=5e-3),
        trainer=TrainerConfig(steps=steps, batch=32, schedule=Linear(warmup=0.1), checkpoint_every=steps),
        seed=seed,
        out=out,
    )
    return whole(train(run.but(changes or {}))).out


def student(
    file: Path,
    out: Path,
    seed: int,
    steps: int = 250,
    start: Path | None = None,
    context: int = CONTEXT,
    changes: Mapping[str, Any] | None = None,
) -> Model:
    """A small model that has learned from a file of conversations alone, or after what it learned at `start`.

    changes: settings of the run that are other than usual.
    """
    run = Run(
        data=ChatData(path=str(file), context=context, tokenizer=None if start else TrainBPE(vocab=VOCAB)),
        model=None if start else small(context=context),
        start=str(start) if start else None,
        optimizer=AdamWConfig(lr=5e-4 if start else 2e-3),
        trainer=TrainerConfig(steps=steps, batch=32, schedule=Linear(warmup=0.1), checkpoint_every=steps),
        seed=seed,
        out=out,
    )
    return load(whole(train(run.but(changes or {}))).out)


def accuracy(model: Model, asked: Sequence[str], system: str | None = None, temperature: float = 0.0) -> float:
    """The share of questions whose answer ends in the right digit, whatever stands before it."""
    said = _answers(model, asked, system, temperature)
    right = [text.split()[-1:] == [solve(question, False)] for text, question in zip(said, asked)]
    return sum(right) / len(right)


def style(model: Model, asked: Sequence[str]) -> float:
    """The share of sums that are answered as the teacher answers them, whether or not they are right."""
    whole = re.compile(rf"[0-{MODULUS - 1}](?: [0-{MODULUS - 1}]){{{DIGITS - 1}}}")
    said = _answers(model, asked)
    return sum(whole.fullmatch(text.strip()) is not None for text in said) / len(said)


def _answers(model: Model, asked: Sequence[str], system: str | None = None, temperature: float = 0.0) -> list[str]:
    told: list[Message] = [{"role": "system", "content": system}] if system else []
    ids = [chat_ids([*told, {"role": "user", "content": question}], model.tokenizer) for question in asked]
    sampling = Sampling(max_new_tokens=30, temperature=temperature, seed=0)
    rows = model.begin_all(ids, sampling)
    model.finish(rows, sampling)
    return [row.text for row in rows]


def write(file: Path, rows: list[dict]) -> Path:
    atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file
