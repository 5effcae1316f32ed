"""Prompts to be answered, as tables have them, each perhaps with the answer that is right.

    {"prompt": "…" or messages, "answer": "42"}        rows of JSON lines, CSV, TSV or Parquet
    What is 6 times 7?                                 a line of a text file

Every mistake in a row is told with its file and line.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from onefold.core.errors import UserError
from onefold.data.sources import open_text
from onefold.data.tables import TABLES, Pick, read_table
from onefold.data.text.chat.answers import USUAL, Said, read_said

ANSWERS = ("answer", "solution", "target")  # usual names of the column


class Asked(NamedTuple):
    """A prompt, and what is right to say; "" where nobody said."""

    place: str  # file and line
    prompt: Said
    answer: str


def read_prompts(path: str | Path, prompt: str | None = None, answer: str | None = None) -> Iterator[Asked]:
    """The rows of a file. prompt, answer: what the columns are called; None: by their usual names.

    Raises UserError that names the file and the row where one is no prompt.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path} does not exist: prompts are rows of a file ({', '.join(TABLES)}, .txt)")
    empty = True
    for number, asked, right in _rows(file, prompt, answer):
        empty = False
        place = f"{file}:{number}"
        said = read_said(asked, f"{place}: prompt", open_end=True)
        if not said or (not isinstance(said, str) and said[-1]["role"] == "assistant"):
            raise UserError(f"{place}: nothing is asked; mend or delete this row")
        yield Asked(place, said, "" if right is None else str(right))
    if empty:
        raise UserError(f"{path} has no rows")


def _rows(file: Path, prompt: str | None, answer: str | None) -> Iterator[tuple[int, object, object]]:
    if set(file.suffixes) & set(TABLES):
        for number, (asked, right) in read_table(file, _pick(prompt, answer)):
            yield number, asked, right
        return
    with open_text(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\r\n"), None


def _pick(prompt: str | None, answer: str | None) -> Pick:
    def pick(known: Sequence[str], where: str) -> list[str | None]:
        found = [
            named or next((name for name in usual if name in known), None)
            for named, usual in ((prompt, USUAL["prompt"]), (answer, ANSWERS))
        ]
        for kind, name, given in zip(("prompt", "answer"), found, (True, answer)):
            if given and name not in known:
                raise UserError(
                    f"{where} has {', '.join(known) or 'no columns'}, and no {name or kind!r}: "
                    f"say which one it is with data.columns.{kind}=NAME"
                )
        return found

    return pick
