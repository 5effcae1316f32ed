"""Ghost attention (Llama 2, Touvron et al. 2023, arXiv 2307.09288, section 3.3): rules that hold for whole dialogues.

Claim: chat models forget after a few turns how they were told to answer; fine-tuned on dialogues that were written with
the rule before every message, and keep it in the first alone, they stay with it for as long as the context reaches
(appendix A.3.5: at turn 4, 10% of rules hold before and 100% after; at turn 20, none and 100%).

    onefold ghost MODEL prompts=dialogues.jsonl instructions=rules.jsonl out=runs/ghost
    onefold train ghost_attention start=MODEL chat=runs/ghost/chat.jsonl

Dialogues that do not fit are left out: those shortened would lose a rule that a user tells in the first message.

The paper fine-tunes the model that wrote the answers. Deviations: it does not say which settings it did this with; ours
are those of its supervised fine-tuning (section 3.1), for a third of the steps.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from onefold.core.json_lines import read_rows
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.messages import chat_ids
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.infer.teaching.ghost import GhostConfig, ghost
from onefold.infer.teaching.teacher import ModelTeacher
from onefold.recipes.alignment import _teaching as world
from onefold.study.check import Report
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

THINGS = ("apple", "bread", "chair", "door", "eagle", "field", "grass", "house", "island", "jacket", "kettle", "lemon")
WORDS = ("fox", "owl", "bee", "cat", "dog", "hen", "pig", "rat", "cow", "elk")  # that rules ask for…
UNSEEN = 2  # …of which the last never stand in a rule for a whole dialogue
TURNS = 4  # at most, of dialogues that are learned from
ASKED = 8  # turns of those that are judged, and at most of those that everything begins with
CONTEXT = 160  # tokens of so many turns
LENGTH = 12  # tokens of an answer, at most
DIALOGUES, TESTED = 800, 60
STEPS, TUNING = 250, 220
LEARNED = {  # by what is compared: the folder of its dialogues, and which of their answers are learned
    "plain": ("plain", "answers"),
    "ghost attention": ("ghost", "last"),
    "older answers before the last": ("older", "last"),
    "older answers learned, too": ("mixed", "answers"),
}


def recipe(start: str | None = None, chat: str = "runs/ghost/chat.jsonl") -> Run:
    """Fine-tuning of all weights of `start`; the loss is on the last answer of each dialogue alone."""
    return Run(
        data=ChatData(path=chat, context=4096, learn="last", too_long="skip"),
        start=start,
        optimizer=AdamWConfig(lr=2e-5, weight_decay=0.1),
        trainer=TrainerConfig(steps=300, batch=64, schedule=Cosine(warmup=0.03), clip=1.0, evaluate_every=50),
        out=Path("runs/ghost_attention"),
    )


def tiny(start: str | None = None, chat: str = "runs/ghost/chat.jsonl") -> Run:
    """Rows of 256 tokens, for models of a million parameters."""
    return recipe(start, chat).but({"data.context": 256, "optimizer.lr": 5e-4, "trainer": {"steps": 120, "batch": 16}})


Rule = tuple[str, str]  # what answers begin and end with; "" where it is free


def check(report: Report) -> None:
    """Synthetic: two things are named, the second is to be said; rules ask for a word before or behind it.

    To the model that everything begins with, a rule holds for the message that it stands before. It writes the answers
    of the same dialogues, with the rule before every message (ghost attention) or in the first alone (plain), and
    learns from them. Or, which is how the paper words it, only the last answer is written so, and those before it are
    older ones that follow no rule: then the last answer is learned alone, or all are.
    """
    held: dict[str, list[list[float]]] = {}
    right: dict[str, list[float]] = {}
    for seed in world.SEEDS:
        folder, random = Path(f"runs/check/ghost_attention/{seed}"), Random(seed)
        start = _learned(_beginning(folder / "begin.jsonl", random), folder / "begin", seed)
        _write(folder, start, random)
        models = {"before": start}
        for name, (part, learn) in LEARNED.items():
            models[name] = _learned(folder / part / "chat.jsonl", folder / part / "run", seed, folder / "begin", learn)
        for told, words in (("", WORDS[:-UNSEEN]), ("new words", WORDS[-UNSEEN:])):
            test = [(_rule(random, words), [_question(random) for _ in range(ASKED)]) for _ in range(TESTED)]
            for name in models if not told else ("before", "plain", "ghost attention"):
                shares, named = judged(models[name], test)
                held.setdefault(f"{name}, {told}" if told else name, []).append(shares)
                if not told:
                    right.setdefault(name, []).append(named)
        rows = [messages for _, messages in read_conversations(folder / "ghost" / "chat.jsonl")]
        report.equal(
            f"seed {seed}: messages of a dialogue that tell a rule", {sum(map(_tells, row)) for row in rows}, {1}
        )
    later = {name: [1 - np.mean(shares[1:]).item() for shares in found] for name, found in held.items()}
    report.less(
        "synthetic rules broken after the first turn: ghost against plain", later["ghost attention"], later["plain"]
    )
    for name, found in held.items():
        for turn in (1, TURNS, ASKED):
            report.note(f"synthetic rules that hold at turn {turn}: {name}", [shares[turn - 1] for shares in found])
    for name, found in right.items():
        report.note(f"synthetic, the right thing is named: {name}", found)
    for turn, before, after in ((2, 1.0, 1.0), (4, 0.1, 1.0), (20, 0.0, 1.0)):
        report.published(f"attributes referred to at turn {turn} (table 30), baseline and GAtt", f"{before}, {after}")
    _draw(report, {name: np.array(held[name]) for name in ("before", *LEARNED)})


def _draw(report: Report, held: dict[str, np.ndarray]) -> None:
    """held: [seeds, turns] each."""
    curves = []
    for i, (name, found) in enumerate(held.items(), 1):
        shares = 100 * found
        band = (shares.min(0), shares.max(0))
        curves.append(Curve(np.arange(1, ASKED + 1.0), shares.mean(0), f"series-{i}", "dots", name, band))
    title = "Rules that still hold, by turn"
    turns = Axis(f"turn (what is learned from has 2 to {TURNS})", low=0.7, high=ASKED + 0.1)
    drawing = draw(curves, turns, Axis("answers that follow the rule, %"), title=title, margin=190)
    report.chart("rules that still hold by turn", drawing)


def judged(model: Model, test: list[tuple[Rule, list[str]]]) -> tuple[list[float], float]:
    """For each turn the share of dialogues whose rule holds; of all answers, the share that names the right thing."""
    said = converse(model, [_with(rule, asked) for rule, asked in test])
    kept = [[holds(rule, text) for text in texts] for (rule, _), texts in zip(test, said)]
    named = [q.split()[-1] in text.split() for (_, asked), texts in zip(test, said) for q, text in zip(asked, texts)]
    return np.mean(kept, axis=0).tolist(), float(np.mean(named))


def converse(model: Model, dialogues: list[list[str]]) -> list[list[str]]:
    """What the model answers to each message, its own answers before it."""
    talks, said, sampling = [[] for _ in dialogues], [[] for _ in dialogues], Sampling(max_new_tokens=LENGTH)
    for turn in range(max(map(len, dialogues))):
        live = [n for n, asked in enumerate(dialogues) if turn < len(asked)]
        for n in live:
            talks[n].append({"role": "user", "content": dialogues[n][turn]})
        rows = model.begin_all([tuple(chat_ids(talks[n], model.tokenizer)) for n in live], sampling)
        model.finish(rows, sampling)
        for n, row in zip(live, rows):
            talks[n].append({"role": "assistant", "content": row.text})
            said[n].append(row.text)
    return said


def holds(rule: Rule, answer: str) -> bool:
    """Whether an answer begins and ends as it should."""
    words = answer.split() or [""]
    return rule[0] in ("", words[0]) and rule[1] in ("", words[-1])


def _write(folder: Path, start: Model, random: Random) -> None:
    """The dialogues that are compared."""
    rules = [
        {"instruction": f"{kind} with {word}", "short": f"{kind} {word}", "kind": kind}
        for kind in ("begin", "end")
        for word in WORDS[:-UNSEEN]
    ]
    asked = [[_question(random) for _ in range(random.randint(2, TURNS))] for _ in range(DIALOGUES)]
    older = [{"messages": _talk(some, [question.split()[-1] for question in some])} for some in asked]
    config = GhostConfig(
        prompts=world.write(folder / "older.jsonl", older),
        instructions=world.write(folder / "rules.jsonl", rules),
        combine=2,
        place="user",
    )
    for part, answers in (("ghost", "all"), ("older", "last")):
        teacher = ModelTeacher(start, "start", TESTED)
        ghost(config.but({"out": folder / part, "answers": answers}), teacher, max_new_tokens=LENGTH)
    every = [
        json.loads(json.dumps(row).replace(', "weight": 0', "")) for row in read_rows(folder / "older" / "chat.jsonl")
    ]
    world.write(folder / "mixed" / "chat.jsonl", every)
    plain = []
    for row in read_rows(folder / "ghost" / "chat.jsonl"):
        kept, *others = [message["content"] for message in row["messages"][::2]]
        heard = [f"{row['instruction']}\n\n{kept.split()[-2]} {kept.split()[-1]}", *others]
        plain.append((kept, heard))
    said = converse(start, [heard for _, heard in plain])
    rows = [{"messages": _talk([kept, *heard[1:]], texts)} for (kept, heard), texts in zip(plain, said)]
    world.write(folder / "plain" / "chat.jsonl", rows)


def _beginning(file: Path, random: Random) -> Path:
    """Dialogues in which half of the messages come with a rule, which holds for their answer."""
    rows = []
    for _ in range(2 * DIALOGUES):
        asked, said = [], []
        for _ in range(random.randint(1, ASKED)):
            question, rule = _question(random), _rule(random, WORDS) if random.random() < 0.5 else ("", "")
            asked += _with(rule, [question])
            said.append(" ".join(filter(None, (rule[0], question.split()[-1], rule[1]))))
        rows.append({"messages": _talk(asked, said)})
    return world.write(file, rows)


def _learned(file: Path, out: Path, seed: int, start: Path | None = None, learn: str = "answers") -> Model:
    changes = {"data.learn": learn, "trainer.batch": 8 if start else 16, "optimizer.lr": 1e-3 if start else 2e-3}
    return world.student(file, out, seed, TUNING if start else STEPS, start, CONTEXT, changes)


def _with(rule: Rule, asked: list[str]) -> list[str]:
    """The messages, the rule before the first."""
    told = " ".join(f"{kind} with {word}" for kind, word in zip(("begin", "end"), rule) if word)
    return [f"{told}\n\n{asked[0]}", *asked[1:]] if told else asked


def _tells(message: dict[str, str]) -> bool:
    return message["role"] == "user" and message["content"].startswith(("begin", "end"))


def _talk(asked: list[str], said: list[str]) -> list[dict[str, str]]:
    return [{"role": r, "content": t} for both in zip(asked, said) for r, t in zip(("user", "assistant"), both)]


def _question(random: Random) -> str:
    return " ".join(random.sample(THINGS, 2))


def _rule(random: Random, words: Sequence[str]) -> Rule:
    begin, end = random.choice(((True, False), (False, True), (True, True)))
    first, last = random.sample(words, 2)
    return first * begin, last * end
