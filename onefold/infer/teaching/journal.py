"""What a teacher has said so far, raw, by what it was asked: whatever is made of it goes on by replaying."""

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from onefold.core.errors import UserError
from onefold.core.json_lines import Add, growing, placed_rows
from onefold.core.progress import Progress
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.teacher import Asked, Teacher, Written, answers

TOGETHER = 4096  # questions that a teacher is given at once


class Journal:
    """The answers of one teacher, a row each in a file that grows, perhaps with those of others. They stay there: only
    where each lies is in memory."""

    def __init__(self, teacher: Teacher, file: Path):
        self.teacher, self.file = teacher, file
        self._places: dict[str, int] = {}
        for number, (place, row) in enumerate(placed_rows(file), 1):
            if not (isinstance(row.get("key"), str) and isinstance(row.get("text"), str)):
                raise UserError(f"{file}:{number} is none of a teacher's answers; give another out=")
            self._places[row["key"]] = place

    def __getitem__(self, key: str) -> Written:
        """What was answered before, by its `asked_key`, whoever said it."""
        with self.file.open("rb") as file:
            file.seek(self._places[key])
            row = json.loads(file.readline())
        return Written(row["text"], str(row.get("finish")))

    def find(self, asked: Asked, sampling: Sampling) -> Written | None:
        """What was answered before."""
        key = asked_key(self.teacher, asked, sampling)
        return self[key] if key in self._places else None

    def ask(self, step: str, asked: Sequence[Asked], sampling: Sampling) -> list[Written]:
        """The answers in order. Raises UserError when the teacher fails; what it said by then is kept."""
        return list(self.each(step, asked, len(asked), sampling))

    def each(self, step: str, asked: Iterable[Asked], count: int, sampling: Sampling) -> Generator[Written, None, None]:
        """The same for `count` questions, of which few are in memory at a time."""
        questions, known = iter(asked), 0
        taken = False  # anything so far: then prompts that are refused are no reason to give up
        with ExitStack() as held:
            writing: tuple[Add, Progress] | None = None
            while some := list(islice(questions, TOGETHER)):
                keys = [asked_key(self.teacher, one, sampling) for one in some]
                left = {key: one for key, one in zip(keys, some) if key not in self._places}
                known += len(keys) - len(left)
                taken = taken or any(self[key].taken for key in keys if key in self._places)
                if left and writing is None:
                    add = held.enter_context(growing(self.file))
                    writing = add, held.enter_context(Progress(step, count, "answers", known))
                elif writing is not None:
                    writing[1].update(len(keys) - len(left))
                if left and writing is not None:
                    self._ask(step, left, sampling, taken, *writing)
                for written in (self[key] for key in keys):
                    taken = taken or written.taken
                    yield written

    def _ask(self, step: str, left: dict[str, Asked], sampling: Sampling, taken: bool, add: Add, bar: Progress) -> None:
        try:
            for key, written in answers(self.teacher, left, sampling, taken):
                place = self.file.stat().st_size
                add({"step": step, "key": key, "text": written.text, "finish": written.finish})
                self._places[key] = place
                bar.update()
        except UserError as error:
            kept = f"{len(self._places):,} answers are kept in {self.file}; the same command goes on"
            raise type(error)(f"{error}\n{kept}") from None


def asked_key(teacher: Teacher, asked: Asked, sampling: Sampling) -> str:
    """A hash of who is asked what, and how it answers."""
    what = [teacher.name, list(asked.messages), asked.copy, sampling.to_dict()]
    return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
