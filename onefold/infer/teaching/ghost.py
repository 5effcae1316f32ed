"""Ghost attention (Llama 2, Touvron et al. 2023, arXiv 2307.09288, section 3.3): rules that hold for a whole dialogue.

    the teacher reads     system?   rule + user 1   answer 1   rule + user 2   →   answer 2
    the student reads     rule      user 1          answer 1   user 2          →   answer 2, which is learned

A rule is put before every user's message while the answers are written, and kept once, in the beginning, to learn from:
the student has to look for it there. Only last answers are to be learned (data.learn=last).

    out/config.json    the settings      out/asked.jsonl    all answers of the teacher, raw
    out/chat.jsonl     conversations, to be learned from (data.kind=chat)

All but the teacher's answers is a pure function of settings, files and those answers: resuming replays them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_write, make_folder
from onefold.core.progress import say
from onefold.data.sources import open_text
from onefold.data.tables import TABLES, needed_column, read_table, usual_column
from onefold.data.text.chat.messages import Message
from onefold.data.text.chat.prompts import read_prompts
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.journal import Journal
from onefold.infer.teaching.teacher import Asked, NoneTaken, Teacher, Written

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class GhostConfig(Config):
    """Which dialogues are written, under which rules."""

    prompts: Path  # dialogues, or single prompts, which are joined to dialogues in the order of the file
    instructions: Path  # rules: a text a line, or rows with instruction, perhaps short and kind
    out: Path = Path("runs/ghost")
    answers: Literal["all", "last"] = "all"  # which the teacher writes; last: the others are those of the file
    turns: tuple[Count, Count] = (2, 5)  # of the user's in a dialogue made of single prompts, least and most
    combine: Count = 1  # at most so many rules in one dialogue, each of another kind
    shorten: Share = 0.5  # of dialogues keep their rules in the short form, so that those that are terse work, too
    place: Literal["system", "user"] = "system"  # who tells the rule; the system, also where a row is shortened
    seed: int = 0

    @model_validator(mode="after")
    def _range(self) -> "GhostConfig":
        if self.turns[0] > self.turns[1]:
            raise PydanticCustomError("turns", "turns are the least and the most, as [2, 5]")
        return self


class Instruction(NamedTuple):
    """A rule as the teacher reads it, what is kept of it where it is shortened, and what rules exclude each other."""

    text: str
    short: str
    kind: str


@dataclass
class Dialogue:
    """What users say, and what was answered so far."""

    source: str  # file and line
    system: str
    asked: list[str]
    said: list[str]
    told: str = ""  # the rule, as the teacher reads it…
    kept: str = ""  # …and as the student does
    given: int = 0  # answers that the teacher did not write
    finish: str = ""  # why the last answer ends; "none" where there is none, and so no more of the dialogue

    @property
    def open(self) -> bool:
        return self.finish != "none" and len(self.said) < len(self.asked)

    def heard(self) -> list[Message]:
        """What the teacher reads to write the next answer."""
        found = _system(self.system)
        for n, asked in enumerate(self.asked[: len(self.said) + 1]):
            found += [_user(f"{self.told}\n\n{asked}"), *(_assistant(text) for text in self.said[n : n + 1])]
        return found

    def saved(self, place: Literal["system", "user"]) -> list[Message]:
        """What the student reads. What the teacher did not write is not learned, whatever `learn` says."""
        rule = {"system": "", "user": "", place: self.kept}
        found = _system("\n".join(filter(None, (self.system, rule["system"]))))
        for n, (asked, said) in enumerate(zip(self.asked, self.said)):
            found.append(_user(f"{rule['user']}\n\n{asked}" if rule["user"] and n == 0 else asked))
            found.append({**_assistant(said), **({"weight": 0} if n < self.given else {})})
        return found


@dataclass(frozen=True)
class Ghosted:
    """How many dialogues were written, and how many not, or not to their end."""

    rows: int
    answers: int  # in them, by the teacher
    ended: int  # before their last turn: it did not fit, or there was no answer
    lost: int  # without any answer of the teacher's
    cut: int  # last answers that reached max_new_tokens


def ghost(config: GhostConfig, teacher: Teacher, **options: Any) -> Ghosted:
    """Let `teacher` write the dialogues into `config.out`. options: those of Sampling.

    Given the same `out` again, it asks only what nobody has answered, also with more prompts or other settings. Errors:
    UserError for files that cannot be read, or a teacher that fails, or says nothing; all that it said is kept.
    """
    sampling = Sampling.from_dict({"max_new_tokens": 512, "seed": config.seed, **options})
    dialogues = _dialogues(config)
    _claim(config)
    journal = Journal(teacher, config.out / "asked.jsonl")
    while waiting := [one for one in dialogues if one.open]:
        _answer(waiting, journal, sampling)
    written = [one for one in dialogues if len(one.said) > one.given]
    if not written:
        raise UserError(f"{teacher.name} answers none of the {len(dialogues):,} dialogues in {config.prompts}")
    atomic_write(
        config.out / "chat.jsonl",
        "".join(json.dumps(_row(one, config, teacher), ensure_ascii=False) + "\n" for one in written),
    )
    done = Ghosted(
        rows=len(written),
        answers=sum(len(one.said) - one.given for one in written),
        ended=sum(one.finish == "none" for one in written),
        lost=len(dialogues) - len(written),
        cut=sum(one.finish == "length" for one in written),
    )
    notes = [f"{done.ended:,} end before their last turn"] * bool(done.ended)
    notes += [f"{done.lost:,} got no answer and no row"] * bool(done.lost)
    notes += [f"{done.cut:,} are cut off at max_new_tokens={sampling.max_new_tokens}"] * bool(done.cut)
    say("; ".join([f"{done.rows:,} dialogues with {done.answers:,} answers in {config.out / 'chat.jsonl'}", *notes]))
    return done


def read_instructions(path: str | Path) -> list[Instruction]:
    """The rules of a file: a text a line, or rows with instruction, perhaps with `short`, which is less verbose, and
    `kind`, of which a dialogue has one rule at most. Raises UserError that names the file and the row."""
    file, found = Path(path).expanduser(), []
    if not file.is_file():
        raise UserError(f"{path} does not exist: instructions are rows of a file ({', '.join(TABLES)}, .txt)")
    for number, values in read_table(file, _pick) if set(file.suffixes) & set(TABLES) else _lines(file):
        if not all(isinstance(value, str | None) for value in values) or not (values[0] or "").strip():
            raise UserError(f"{file}:{number} is no instruction: write it as text, as its short form and its kind")
        text, short, kind = ((value or "").strip() for value in values)
        found.append(Instruction(text, short or text, kind))
    if not found:
        raise UserError(f"{path} holds no instructions: write some that can hold for a whole dialogue")
    return found


def _dialogues(config: GhostConfig) -> list[Dialogue]:
    """With their rules; each draws its own, so that more prompts at the end of a file change nothing before."""
    kinds: dict[str, list[Instruction]] = {}
    for one in read_instructions(config.instructions):
        kinds.setdefault(one.kind, []).append(one)
    if config.combine > len(kinds):
        raise UserError(
            f"combine={config.combine} needs rules of as many kinds, and {config.instructions} has {len(kinds)}: "
            "give rows a kind, of which a dialogue has one rule at most"
        )
    found = list(_read(config))
    for n, one in enumerate(found):
        random = Random(f"{config.seed} {n}")
        rules = [random.choice(kinds[kind]) for kind in random.sample([*kinds], random.randint(1, config.combine))]
        one.told = " ".join(rule.text for rule in rules)
        one.kept = " ".join(rule.short for rule in rules) if random.random() < config.shorten else one.told
    return found


def _read(config: GhostConfig) -> Iterator[Dialogue]:
    """Without rules."""
    random, joined, length = Random(config.seed), Dialogue("", "", [], []), 0
    for place, prompt, *_ in read_prompts(config.prompts, answered=True):
        if not isinstance(prompt, str):
            yield _given(config, _turns(place, prompt))
            continue
        if config.answers == "last":
            raise UserError(f"{place} is a single prompt: answers=last keeps what dialogues (messages) have as answers")
        if not joined.asked:
            joined, length = Dialogue(place, "", [], []), random.randint(*config.turns)
        joined.asked.append(prompt)
        if len(joined.asked) == length:
            yield joined
            joined = Dialogue("", "", [], [])
    if joined.asked:
        yield joined


def _given(config: GhostConfig, one: Dialogue) -> Dialogue:
    """With no answers, or with all but the last."""
    if config.answers == "last":
        one.given = len(one.asked) - 1
        if len(one.said) < one.given:
            raise UserError(f"{one.source}: a user's message has no answer; mend it, or have all written: answers=all")
    one.said = one.said[: one.given]
    return one


def _turns(place: str, messages: Sequence[Message]) -> Dialogue:
    one, before = Dialogue(place, "", [], []), "system"
    for message in messages:
        role, text = message["role"], message["content"]
        if role in ("system", "developer") and before in ("system", "developer"):
            one.system = "\n".join(filter(None, (one.system, text)))
        elif role == "user":
            one.asked.append(text)
        elif role == "assistant" and before == "user":
            if len(one.said) == len(one.asked) - 1:  # otherwise somebody was not answered before
                one.said.append(text)
        else:
            raise UserError(f"{place}: a message of the {role} is out of order: users and the assistant take turns")
        before = role
    return one


def _answer(waiting: list[Dialogue], journal: Journal, sampling: Sampling) -> None:
    """The next answer of each. Short ones first: where a teacher takes none of them, it takes no longer one."""
    asked = [(one, Asked(one.heard(), place=one.source)) for one in waiting]
    asked.sort(key=lambda both: sum(len(message["content"]) for message in both[1].messages))
    turn = min(len(one.said) for one in waiting) + 1
    try:
        answers = journal.ask(f"turn {turn}", [one for _, one in asked], sampling)
    except NoneTaken as error:
        found = [journal.find(one, sampling) for _, one in asked]
        if not (any(found) or any(len(one.said) > one.given for one in waiting)):
            raise
        say(f"{str(error).splitlines()[0]}; no dialogue that is as long goes on")
        answers = [one or Written("", "refused") for one in found]
    for (one, _), written in zip(asked, answers):
        if written.text.strip():
            one.said.append(written.text)
        one.finish = written.finish if written.text.strip() else "none"


def _row(one: Dialogue, config: GhostConfig, teacher: Teacher) -> dict[str, Any]:
    return {"messages": one.saved(config.place), "instruction": one.told, "teacher": teacher.name}


def _pick(known: Sequence[str], where: str) -> list[str | None]:
    ask = "name the column of the rules instruction"
    first = needed_column(known, where, None, ("instruction", "text"), ask)
    return [first, *(usual_column(known, where, None, (name,)) for name in ("short", "kind"))]


def _lines(file: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    with open_text(file) as lines:
        yield from ((number, (line, "", "")) for number, line in enumerate(lines, 1) if line.strip())


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _claim(config: GhostConfig) -> None:
    """A folder of dialogues is nothing else's."""
    make_folder(config.out)
    file = config.out / "config.json"
    try:
        ours = bool(GhostConfig.from_json(file.read_text())) if file.is_file() else not any(config.out.iterdir())
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"{config.out} holds something else; give another out=")
    atomic_write(file, config.to_json() + "\n")
