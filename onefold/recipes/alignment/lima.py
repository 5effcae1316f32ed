"""LIMA (Zhou et al. 2023, arXiv 2305.11206): less is more for alignment.

Claim: a model learns nearly all it knows in pre-training; what it learns afterwards is how to answer, for which a
thousand good and different conversations do, and are better than many more of mixed quality (section 5: doubling the
data brought nothing, filtering it half a point of seven).

    onefold select many.jsonl out=few.jsonl count=1000 order=longest
    onefold train lima start=MODEL chat=few.jsonl

Deviations: the thousand were picked by hand; `select` has the filters and the variety, and no taste. Rows are packed,
so that a batch holds more than 32 conversations and 15 epochs are fewer steps. There is no dropout of the residual
stream, which in the paper rises from 0 at the bottom to 0.3 at the top.
"""

from pathlib import Path
from random import Random

from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.selection import SelectionConfig, select
from onefold.recipes.alignment import _teaching as world
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

CLEAN, NOISY = 100, 1000  # conversations: one to ten, as the claim has it
WRONG = 0.5  # share of the noisy ones whose answer is of no use


def recipe(start: str | None = None, chat: str = "few.jsonl") -> Run:
    """1,000 conversations as in section 3; `trainer.steps` is of 15 epochs of 32 unpacked conversations."""
    return Run(
        data=ChatData(path=chat, context=2048),
        start=start,
        optimizer=AdamWConfig(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1),
        trainer=TrainerConfig(steps=469, batch=32, schedule=Linear(warmup=0.0, final=0.1), evaluate_every=31),
        out=Path("runs/lima"),
    )


def tiny(start: str | None = None, chat: str = "few.jsonl") -> Run:
    """Rows of 128 tokens, for models of a million parameters."""
    return recipe(start, chat).but({"data.context": 128, "optimizer.lr": 5e-4, "trainer": {"steps": 60, "batch": 16}})


def check(report: Report) -> None:
    """Synthetic: a model that can add digits up learns to say so in another way, from few good or ten times as many
    mixed answers, in as many steps. `select` then takes what is of no use by its form out of the mixed ones.
    """
    found: dict[str, list[float]] = {}
    for seed in world.SEEDS:
        folder, random = Path(f"runs/check/lima/{seed}"), Random(seed)
        asked = world.questions("sum", 1500 + NOISY + CLEAN + world.TESTED, random)
        knows = _file(folder / "knows.jsonl", [(q, world.solve(q, True)) for q in asked[:1500]])
        world.student(knows, folder / "knows", seed)
        some, test = asked[1500 : -world.TESTED], asked[-world.TESTED :]
        mixed = [(q, _useless(q, random) if random.random() < WRONG else _styled(q)) for q in some[:NOISY]]
        files = {
            f"{CLEAN} good": _file(folder / "good.jsonl", [(q, _styled(q)) for q in some[NOISY:]]),
            f"{NOISY} mixed": _file(folder / "mixed.jsonl", mixed),
            f"{NOISY} mixed, selected": folder / "selected.jsonl",
        }
        wanted = SelectionConfig(without=("do not know",), likeness=1.0)
        fates = select(folder / "mixed.jsonl", folder / "selected.jsonl", wanted)
        report.equal(f"seed {seed}: selected and left out", sum(fates.values()), NOISY)
        for name, file in files.items():
            model = world.student(file, folder / file.stem, seed, 60, folder / "knows")
            found.setdefault(name, []).append(world.accuracy(model, test, temperature=0.7))
    good, mixed_share = found[f"{CLEAN} good"], found[f"{NOISY} mixed"]
    report.note("synthetic: good ones ahead of mixed ones, share right", [a - b for a, b in zip(good, mixed_share)])
    for name, values in found.items():
        report.note(f"synthetic, share right at temperature 0.7: {name}", values)


def _styled(question: str) -> str:
    """The right answer as the model is to give it."""
    return f"{world.solve(question, True)} = {world.solve(question, False)}"


def _useless(question: str, random: Random) -> str:
    """A refusal, or the sum of other digits."""
    return "I do not know." if random.random() < 0.5 else _styled(world.questions("sum", 1, random)[0])


def _file(file: Path, pairs: list[tuple[str, str]]) -> Path:
    return world.write(file, [{"prompt": question, "completion": answer} for question, answer in pairs])
