"""What a teacher has said so far, raw, by what it was asked: whatever is made of it goes on by replaying."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from onefold.core.errors import UserError
from onefold.core.json_lines import growing, read_rows
from onefold.core.progress import Progress
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.teacher import Asked, Teacher, Written


class Journal:
    """The answers of one teacher, a row each in a file that grows."""

    def __init__(self, teacher: Teacher, file: Path):
        self.teacher, self.file = teacher, file
        self.said: dict[str, Written] = {}
        for number, row in enumerate(read_rows(file), 1):
            if not (isinstance(row.get("key"), str) and isinstance(row.get("text"), str)):
                raise UserError(f"{file}:{number} is none of a teacher's answers; give another out=")
            self.said[row["key"]] = Written(row["text"], str(row.get("finish")))

    def find(self, asked: Asked, sampling: Sampling) -> Written | None:
        """What was answered before."""
        return self.said.get(asked_key(self.teacher, asked, sampling))

    def ask(self, step: str, asked: Sequence[Asked], sampling: Sampling) -> list[Written]:
        """The answers in order. Raises UserError when the teacher fails; what it said by then is kept."""
        keys = [asked_key(self.teacher, one, sampling) for one in asked]
        left = {key: one for key, one in zip(keys, asked) if key not in self.said}
        names = list(left)
        if left:
            with growing(self.file) as add, Progress(step, len(keys), "answers", len(keys) - len(left)) as bar:
                try:
                    for which, written in self.teacher.answer(list(left.values()), sampling):
                        add({"step": step, "key": names[which], "text": written.text, "finish": written.finish})
                        self.said[names[which]] = written
                        bar.update()
                except UserError as error:
                    kept = f"{len(self.said):,} answers are kept in {self.file}; the same command goes on"
                    raise type(error)(f"{error}\n{kept}") from None
        return [self.said[key] for key in keys]


def asked_key(teacher: Teacher, asked: Asked, sampling: Sampling) -> str:
    """A hash of who is asked what, and how it answers."""
    what = [teacher.name, list(asked.messages), asked.copy, sampling.to_dict()]
    return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
