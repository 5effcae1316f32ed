"""Orca 2 (Mitra et al. 2023, arXiv 2311.11045): small models learn how to reason, and when.

Claim: a teacher that is told how to go about each task (step by step, recall then answer, at once) answers better; a
student that learns these answers without seeing what the teacher was told ("prompt erasing", section 4) has to choose
the way by itself, and does so when nobody gives it a hint.

    onefold teach TEACHER prompts=FILE out=taught.jsonl --generic 'You are a helpful assistant.'
    onefold train orca2 start=MODEL chat=taught.jsonl

The check also shows the counter-claim to all imitation: a student takes over its teacher's style sooner than its
accuracy (Gudibande et al. 2023, "The False Promise of Imitating Proprietary LLMs", arXiv 2305.15717).

Deviations: the paper says which machines it trained on and for how many epochs, and not its learning rate; ours is
what full fine-tuning of Llama 2 is usually done with. Its progressive training (FLAN, then ChatGPT's, then GPT-4's
answers) is a run for each file.
"""

from pathlib import Path
from random import Random

import numpy as np

from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.files import read_conversations
from onefold.infer.teaching.teach import teach
from onefold.recipes.alignment import _teaching as world
from onefold.study.check import Report
from onefold.study.pages.charts import Axis, Curve, Level, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

TAUGHT = 1500  # questions of each kind
IMITATED = (10, 50, 250, 1250)  # answers of the teacher that students imitate


def recipe(start: str | None = None, chat: str = "taught.jsonl") -> Run:
    """Fine-tuning of all weights of `start` on what a teacher wrote; loss on its words only, rows of 4,096 tokens."""
    return Run(
        data=ChatData(path=chat, context=4096),
        start=start,
        optimizer=AdamWConfig(lr=1e-5, weight_decay=0.0),
        trainer=TrainerConfig(steps=1000, batch=64, schedule=Linear(warmup=0.03), evaluate_every=100),
        out=Path("runs/orca2"),
    )


def tiny(start: str | None = None, chat: str = "taught.jsonl") -> Run:
    """Rows of 128 tokens, for models of a million parameters."""
    return recipe(start, chat).but({"data.context": 128, "optimizer.lr": 1e-3, "trainer": {"steps": 200, "batch": 16}})


def check(report: Report) -> None:
    """Synthetic: sums of digits are to be worked out step by step, last digits read off; the teacher is told which.

    Two students of each seed learn the same answers, one with what the teacher was told and one without. Both are then
    asked without a hint.
    """
    found: dict[str, list[float]] = {}
    for seed in world.SEEDS:
        folder = Path(f"runs/check/orca2/{seed}")
        files = _taught(folder, seed)
        test = {kind: world.questions(kind, world.TESTED, Random(1000 + seed)) for kind in ("sum", "last")}
        for name, file in files.items():
            model = world.student(file, folder / name, seed)
            for kind, asked in test.items():
                found.setdefault(f"{name}, {kind}", []).append(world.accuracy(model, asked))
            if name == "told":
                found.setdefault("told, sum, with the hint", []).append(world.accuracy(model, test["sum"], world.STEPS))
        report.equal(f"seed {seed}: roles in what is erased", _roles(files["erased"]), ["assistant", "user"])
        report.equal(f"seed {seed}: roles in what is not", _roles(files["told"]), ["assistant", "system", "user"])
    wrong = {name: [1 - right for right in values] for name, values in found.items()}
    report.less("synthetic sums wrong, no hint: erased against told", wrong["erased, sum"], wrong["told, sum"])
    for name, values in found.items():
        report.note(f"synthetic, share right: {name}", values)
    _false_promise(report)


def _false_promise(report: Report) -> None:
    """What imitation brings first: students that can read digits off learn from ever more sums of the teacher, in as
    many steps. Style is an answer of as many digits as it takes, accuracy the right one in the end; that it comes with
    more and larger steps, the erased students above show."""
    style, right = np.zeros((2, len(world.SEEDS), len(IMITATED)))
    for i, seed in enumerate(world.SEEDS):
        folder, random = Path(f"runs/check/orca2/{seed}"), Random(seed)
        test = world.questions("sum", world.TESTED, Random(1000 + seed))
        asked = [q for q in world.questions("sum", IMITATED[-1] + world.TESTED, random) if q not in test]
        other = world.questions("last", TAUGHT, random)
        before = folder / "before"
        world.student(_answered(folder / "before.jsonl", other), before, seed)
        for n, count in enumerate(IMITATED):
            file = _answered(folder / f"imitated-{count}.jsonl", asked[:count])
            model = world.student(file, folder / f"imitates-{count}", seed, 150, before)
            style[i, n], right[i, n] = world.style(model, test), world.accuracy(model, test)
    for n, count in enumerate(IMITATED):
        report.note(f"synthetic sums in the teacher's style, after imitating {count}", style[:, n].tolist())
        report.note(f"synthetic sums right, after imitating {count}", right[:, n].tolist())
    curves = [
        Curve(np.array(IMITATED), values.mean(0), f"series-{i}", "dots", label, (values.min(0), values.max(0)))
        for i, (label, values) in enumerate((("style", style), ("accuracy", right)), 1)
    ]
    axes = Axis("answers of the teacher that are imitated", log=True), Axis("share of new sums", 0.0, 1.03)
    guess = [Level("guessing", 1 / world.MODULUS)]
    report.chart("style and accuracy of imitation", draw(curves, *axes, guess, title="Style and accuracy", margin=110))


def _taught(folder: Path, seed: int) -> dict[str, Path]:
    """The files of both students."""
    random = Random(seed)
    held = {q for kind in ("sum", "last") for q in world.questions(kind, world.TESTED, Random(1000 + seed))}
    asked = [(kind, q) for kind in ("sum", "last") for q in world.questions(kind, TAUGHT, random) if q not in held]
    random.shuffle(asked)
    hints = {"sum": world.STEPS, "last": world.AT_ONCE}
    rows = [
        {"prompt": [{"role": "system", "content": hints[kind]}, {"role": "user", "content": question}]}
        for kind, question in asked
    ]
    prompts = world.write(folder / "prompts.jsonl", rows)
    files = {name: folder / f"{name}.jsonl" for name in ("erased", "told")}
    teach(world.Program(), prompts, files["erased"], erase=True)
    teach(world.Program(), prompts, files["told"])
    return files


def _answered(file: Path, asked: list[str]) -> Path:
    """Questions with the teacher's answers, step by step."""
    return world.write(file, [{"prompt": question, "completion": world.solve(question, True)} for question in asked])


def _roles(file: Path) -> list[str]:
    return sorted({message["role"] for _, messages in read_conversations(file) for message in messages})
