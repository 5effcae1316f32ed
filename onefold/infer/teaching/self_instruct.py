"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): from a few tasks written by people to many by a model.

    seeds → instructions → classification or not → instances → filters → conversations

    out/config.json    the settings           out/asked.jsonl     all answers of the teacher, raw
    out/tasks.jsonl    what was kept          out/chat.jsonl      the same, to be learned from (data.kind=chat)

All but the teacher's answers is a pure function of settings, seeds and those answers, which are written down as they
come: resuming replays them, and asks only what nobody has answered. The prompts are written anew, not the paper's.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from onefold.core.config import Config, differences
from onefold.core.errors import UserError
from onefold.core.files import atomic_write, make_folder
from onefold.core.json_lines import read_rows
from onefold.core.progress import say
from onefold.data.text.chat.rouge import Known
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.journal import Journal
from onefold.infer.teaching.teacher import Asked, Teacher

Count = Annotated[int, Field(ge=1)]
FREE = {"count", "seeds", "out"}  # what may differ when a folder is gone on with
UNSUITED = (
    "image",
    "images",
    "picture",
    "pictures",
    "graph",
    "graphs",
    "video",
    "audio",
    "draw",
    "plot",
    "file",
    "map",
)
STALLED = 20  # rounds in a row without a new instruction, after which no more are asked for
_ITEM = re.compile(r"(?:^|\n)\s*(?:task\s*)?\d+\s*[.:)]\s*", re.IGNORECASE)
_FIELD = re.compile(r"(?:^|\n)\s*(input|output|label)\s*(?:\d+)?\s*:[ \t]*", re.IGNORECASE)


class SelfInstructConfig(Config):
    """The paper's settings, but for `count` (52,000 there)."""

    seeds: Path  # rows of an instruction, input and output, perhaps with "classification": true or false
    out: Path = Path("runs/self-instruct")
    count: Count = 1000  # instructions to be kept, seeds not counted
    people: Count = 6  # seeds shown when instructions are asked for…
    machine: Annotated[int, Field(ge=0)] = 2  # …and kept ones of the teacher's, as soon as there are so many
    shown: Count = 4  # seeds that show how instances look
    likeness: Annotated[float, Field(gt=0, le=1)] = 0.7  # most ROUGE-L with any instruction that is kept
    words: tuple[int, int] = (4, 150)  # of an instruction, least and most
    unsuited: tuple[str, ...] = UNSUITED  # words of tasks that a model of text cannot do
    round: Count = 16  # requests for instructions at once
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_new_tokens: Count = 1024
    seed: int = 0

    def sampling(self, greedy: bool = False) -> Sampling:
        drawn = {} if greedy else {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return Sampling.from_dict({"max_new_tokens": self.max_new_tokens, **drawn})


@dataclass(frozen=True)
class Task:
    """An instruction and an instance of it. `classification` None: nobody has said."""

    instruction: str
    input: str = ""
    output: str = ""
    classification: bool | None = None


def self_instruct(config: SelfInstructConfig, teacher: Teacher) -> dict[str, int]:
    """All four steps; how many instructions and instances had which fate, told line by line.

    Given the same `out` again, it goes on where it stopped, also with a larger `count`. Errors: UserError for seeds
    that cannot be read, other settings than before, or a teacher that fails; all that it said by then is kept.
    """
    make_folder(config.out)
    _claim(config)
    seeds, journal = read_seeds(config.seeds), Journal(teacher, config.out / "asked.jsonl")
    fates: Counter[str] = Counter()
    instructions = invent(config, seeds, journal, fates)
    tasks = classify(config, seeds, instructions, journal)
    found = instances(config, seeds, tasks, journal, fates)
    _write(config.out / "tasks.jsonl", [asdict(task) for task in found])
    _write(config.out / "chat.jsonl", [_talk(task) for task in found])
    for fate, number in fates.most_common():
        say(f"  {number:>9,}  {fate}")
    say(f"{len(found):,} conversations: {config.out / 'chat.jsonl'}")
    return dict(fates)


def read_seeds(path: Path) -> list[Task]:
    """Tasks that people wrote: "instruction", "input", "output" of each row, or, as the paper's authors publish them,
    "instances". Raises UserError naming the row that is something else."""
    tasks = []
    for number, row in enumerate(read_rows(Path(path).expanduser()), 1):
        some = row.get("instances") or [row]
        first = some[0] if isinstance(some, list) and isinstance(some[0], dict) else {}
        told = row.get("instruction"), first.get("input", ""), first.get("output")
        if not all(isinstance(text, str) for text in told) or not (told[0] or "").strip():
            raise UserError(f'{path}:{number} is no task: write "instruction", "input" (may be empty) and "output"')
        kind = row.get("classification", row.get("is_classification"))
        tasks.append(Task(*told, classification=None if kind is None else bool(kind)))
    if not tasks:
        raise UserError(f"{path} holds no tasks: Self-Instruct begins with some that people wrote (the paper's, 175)")
    return tasks


def invent(config: SelfInstructConfig, seeds: Sequence[Task], journal: Journal, fates: Counter[str]) -> list[str]:
    """Step 1, new instructions, with the filters of step 4 that make them differ; in the order in which they came."""
    human, kept = [task.instruction for task in seeds], []
    known, number, stalled = Known(human), 0, 0
    while len(kept) < config.count and stalled < STALLED:
        asked = []
        for slot in range(config.round):
            random = Random(f"{config.seed} {number} {slot}")
            machine = random.sample(kept, config.machine) if len(kept) >= config.machine else []
            shown = random.sample(human, min(len(human), config.people + config.machine - len(machine))) + machine
            random.shuffle(shown)
            asked.append(Asked(_user(_more(shown)), number * config.round + slot))
        before = len(kept)
        for written in journal.ask("instructions", asked, config.sampling()):
            for instruction in listed(written.text):
                fate = unfit(instruction, config) or (
                    "like another one" * (known.nearest(instruction)[0] > config.likeness)
                )
                fates[f"instruction: {fate or 'kept'}"] += 1
                if not fate:
                    known.add(instruction)
                    kept.append(instruction)
        number, stalled = number + 1, 0 if len(kept) > before else stalled + 1
    if stalled:
        say(f"{STALLED} rounds brought nothing new: going on with {len(kept):,} instructions of {config.count:,}")
    return kept[: config.count]


def classify(
    config: SelfInstructConfig, seeds: Sequence[Task], instructions: Sequence[str], journal: Journal
) -> list[Task]:
    """Step 2: whether each instruction asks for one of few labels."""
    shown = [task for task in seeds if task.classification is not None]
    random = Random(config.seed)
    both = [[task for task in shown if task.classification == kind] for kind in (True, False)]
    examples = [task for some in both for task in random.sample(some, min(len(some), config.shown))]
    random.shuffle(examples)
    asked = [Asked(_user(_whether(examples, instruction))) for instruction in instructions]
    said = journal.ask("classification or not", asked, config.sampling(greedy=True))
    return [
        Task(instruction, classification=written.text.strip().lower().startswith("yes"))
        for instruction, written in zip(instructions, said)
    ]


def instances(
    config: SelfInstructConfig, seeds: Sequence[Task], tasks: Sequence[Task], journal: Journal, fates: Counter[str]
) -> list[Task]:
    """Steps 3 and 4: an input and its output for each task. Of classifications the label comes first, since inputs that
    come first are of one label nearly always (section 2.2)."""
    random, asked = Random(config.seed), []
    for task in tasks:
        alike = [seed for seed in seeds if bool(seed.classification) == task.classification] or list(seeds)
        shown = random.sample(alike, min(len(alike), config.shown))
        asked.append(Asked(_user(_instance(shown, task))))
    found: list[Task] = []
    seen: dict[tuple[str, str], str] = {}
    for task, written in zip(tasks, journal.ask("instances", asked, config.sampling(greedy=True))):
        fields = fields_of(written.text)
        one = replace(
            task, input=fields.get("input", ""), output=fields.get("label" if task.classification else "output", "")
        )
        same = one.instruction, one.input
        if not one.output:
            fate = "without an output"
        elif one.output == one.input:
            fate = "whose output is its input"
        elif same in seen:
            fate = "a duplicate" if seen[same] == one.output else "same input, another output"
        else:
            fate = "kept"
            found.append(one)
        seen.setdefault(same, one.output)
        fates[f"instance: {fate}"] += 1
    return found


def unfit(instruction: str, config: SelfInstructConfig) -> str:
    """Why an instruction is left out by itself; "" where it is not (section 2.2, and the authors' code)."""
    words, (least, most) = instruction.split(), config.words
    if len(words) < least or len(words) > most:
        return f"of fewer than {least} words" if len(words) < least else f"of more than {most} words"
    plain = set(re.findall(r"\w+", instruction.lower()))
    if suits_not := plain & set(config.unsuited):
        return f"about {min(suits_not)!r}"
    return "that begins with no letter" if not instruction[0].isalpha() else ""


def listed(text: str) -> list[str]:
    """The items of a numbered list, each on one line. What stands before the first number is one, too, where an answer
    goes on with a list, but not where it announces one."""
    parts = [" ".join(part.split()) for part in _ITEM.split(text)]
    return [part for n, part in enumerate(parts) if part and not (n == 0 and part.endswith(":"))]


def fields_of(text: str) -> Mapping[str, str]:
    """The first input, output or label of an answer, by its name in small letters; "none" is nothing."""
    pieces, found = _FIELD.split(text), {}
    for name, value in zip(pieces[1::2], pieces[2::2]):
        plain = value.strip()
        found.setdefault(
            name.lower(), "" if re.fullmatch(r"[<(]?(none|noinput|no input)[.>)]?", plain.lower()) else plain
        )
    return found


def _more(shown: Sequence[str]) -> str:
    items = "\n".join(f"Task {n}: {' '.join(text.split())}" for n, text in enumerate(shown, 1))
    last = len(shown) + 1
    return f"Go on with this list of different tasks. Write eight more, each on a line.\n\n{items}\nTask {last}:"


def _whether(examples: Sequence[Task], instruction: str) -> str:
    head = "Is the answer to this task one of a few fixed labels (a classification)? Say Yes or No."
    shown = "".join(f"Task: {t.instruction}\nAnswer: {'Yes' if t.classification else 'No'}\n\n" for t in examples)
    return f"{head}\n\n{shown}Task: {instruction}\nAnswer:"


def _instance(shown: Sequence[Task], task: Task) -> str:
    names = ("Label", "Input") if task.classification else ("Input", "Output")
    head = f"Give one example of the task, as {names[0]}: and {names[1]}:. Where no input is needed, write Input: none."
    parts = []
    for one in shown:
        given = {"Input": one.input or "none", "Output": one.output, "Label": one.output}
        parts.append("\n".join([f"Task: {one.instruction}", *(f"{name}: {given[name]}" for name in names)]))
    return "\n\n".join([head, *parts, f"Task: {task.instruction}"])


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _talk(task: Task) -> dict[str, Any]:
    asked = f"{task.instruction}\n\n{task.input}" if task.input else task.instruction
    return {"messages": [*_user(asked), {"role": "assistant", "content": task.output}]}


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    atomic_write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _claim(config: SelfInstructConfig) -> None:
    """One pipeline, one folder."""
    file = config.out / "config.json"
    if file.is_file():
        before = SelfInstructConfig.from_json(file.read_text(), str(file))
        changed = differences(before.to_dict(), config.to_dict())
        if other := sorted(set(changed) - FREE):
            raise UserError(f"{config.out} was begun with another {other[0]}; give another out=")
    atomic_write(file, config.to_json() + "\n")
