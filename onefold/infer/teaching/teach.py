"""A teacher's answers to a file of prompts, as conversations that a student learns from (data.kind=chat).

That is distillation of sequences (Kim & Rush 2016, arXiv 1606.07947): the student is fine-tuned on what the teacher
wrote. What the teacher was told about how to answer can be left out of what is saved, so that the student has to find
out by itself (prompt erasing: Orca 2, arXiv 2311.11045, section 4).
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.json_lines import growing, read_rows
from onefold.core.progress import Progress, say
from onefold.data.text.chat.messages import Message
from onefold.data.text.chat.prompts import read_prompts
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.journal import asked_key
from onefold.infer.teaching.teacher import Asked, Teacher, answers

KEY = "key"  # of a row in the file of answers: what was asked, of whom and how


@dataclass(frozen=True)
class Taught:
    """How many rows a file of answers has got, and how many prompts got none."""

    rows: int
    new: int
    empty: int
    cut: int  # of the new ones: not at their end when they reached max_new_tokens


def teach(
    teacher: Teacher,
    prompts: str | Path,
    out: str | Path,
    system: str | None = None,
    erase: bool = False,
    generic: str | None = None,
    **options: Any,
) -> Taught:
    """Let `teacher` answer every prompt of a file; a conversation a line goes to `out`, as it comes.

    Rows that are there are not asked for again, so the same command goes on after an interruption, and further prompts
    or settings add rows. system: what the teacher is told, in place of what a prompt's own system message says. erase:
    save no system message; generic: save this one instead. options: those of Sampling.

    Errors: UserError for a prompt that cannot be read, or a teacher that fails; all answers up to then are kept.
    """
    sampling, out = Sampling.from_dict({"max_new_tokens": 512, **options}), Path(out)
    if Path(prompts).resolve() == out.resolve():
        raise UserError(f"the answers would overwrite the prompts in {prompts}; give another out=")
    asked = {asked_key(teacher, one, sampling): one for one in _asked(prompts, system, sampling.greedy)}
    kept = {"erase": erase or generic is not None, "generic": generic or None}
    rows, keys = 0, set()
    for number, row in enumerate(read_rows(out), 1):
        if not isinstance(row.get(KEY), str):
            raise UserError(f"{out}:{number} is none of a teacher's answers; give another out=")
        if row[KEY] in asked and row.get("saved", kept) != kept:
            raise UserError(f"{out}:{number} was written with other --erase or --generic; give another out=")
        rows = number
        keys.add(row[KEY])
    left = {key: one for key, one in asked.items() if key not in keys}
    if len(left) < len(asked):
        say(f"{out} has {len(asked) - len(left):,} of {len(asked):,} answers; asking for the others")
    new, empty, cut = 0, 0, 0
    with growing(out) as add, Progress("teaching", len(asked), "answers", len(asked) - len(left)) as bar:
        try:
            for key, written in answers(teacher, left, sampling, taken=len(left) < len(asked)):
                bar.update()
                if not written.text.strip():
                    empty += 1
                    continue
                new, cut = new + 1, cut + (written.finish == "length")
                saved = [*_saved(left[key].messages, erase, generic), _assistant(written.text)]
                told = {"teacher": teacher.name, "finish": written.finish, "saved": kept}
                add({"messages": saved, KEY: key, **told})
        except UserError as error:
            raise UserError(f"{error}\n{rows + new:,} answers are kept in {out}; the same command goes on") from None
    notes = [f"{empty:,} prompts got an empty answer and no row"] * bool(empty)
    notes += [f"{cut:,} answers are cut off at max_new_tokens={sampling.max_new_tokens}"] * bool(cut)
    say("; ".join([f"{rows + new:,} conversations in {out}, {new:,} of them new", *notes]))
    return Taught(rows + new, new, empty, cut)


def _asked(prompts: str | Path, system: str | None, greedy: bool) -> Iterable[Asked]:
    """What the teacher reads. Equal prompts are asked again where answers are drawn."""
    counts: Counter[str] = Counter()
    for place, prompt, *_ in read_prompts(prompts):
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *_without_system(messages)]
        same = json.dumps(messages, sort_keys=True)
        yield Asked(messages, 0 if greedy else counts[same], place)
        counts[same] += 1


def _saved(messages: Sequence[Message], erase: bool, generic: str | None) -> list[Message]:
    if not erase and generic is None:
        return list(messages)
    return [*([{"role": "system", "content": generic}] if generic else []), *_without_system(messages)]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message["role"] not in ("system", "developer")]


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
