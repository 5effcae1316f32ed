"""Prompts to be answered, as tables have them, each perhaps with the answer that is right, or tagged as risky.

    {"prompt": "…" or messages, "answer": "42"}        rows of JSON lines, CSV, TSV or Parquet
    {"prompt": "…" or messages, "risky": true}
    What is 6 times 7?                                 a line of a text file

Every mistake in a row is told with its file and line.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onefold.core.errors import UserError
from onefold.data.sources import open_text
from onefold.data.tables import TABLES, Pick, read_table
from onefold.data.text.chat.answers import USUAL, Said, read_said

NAMES = {"prompt": USUAL["prompt"], "answer": ("answer", "solution", "target"), "risky": ("risky",)}  # usual ones
TAGS: dict[str, bool] = dict.fromkeys(("", "0", "0.0", "false", "no"), False)
TAGS |= dict.fromkeys(("1", "1.0", "true", "yes"), True)


class Asked(NamedTuple):
    """A prompt, and what is right to say; "" where nobody said."""

    place: str  # file and line
    prompt: Said
    answer: str
    risky: bool = False  # may lead a model to say what does harm


def read_prompts(
    path: str | Path,
    prompt: str | None = None,
    answer: str | None = None,
    risky: str | None = None,
    tagged: bool = False,
    answered: bool = False,
) -> Iterator[Asked]:
    """The rows of a file. prompt, answer, risky: what the columns are called; None: by their usual names.

    tagged: whether risky prompts are told apart; otherwise a column of that name means whatever it means. answered: a
    conversation may end with what the assistant says, which is left out.

    Raises UserError that names the file and the row where one is no prompt.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path} does not exist: prompts are rows of a file ({', '.join(TABLES)}, .txt)")
    empty = True
    columns = {"prompt": prompt, "answer": answer} | ({"risky": risky} if tagged else {})
    for number, (asked, right, *tags) in _rows(file, columns):
        empty = False
        place = f"{file}:{number}"
        said = read_said(asked, f"{place}: prompt", open_end=True)
        if answered and not isinstance(said, str) and said[-1]["role"] == "assistant":
            said = said[:-1]
        if not said or (not isinstance(said, str) and said[-1]["role"] == "assistant"):
            raise UserError(f"{place}: nothing is asked; mend or delete this row")
        tag = "" if tags in ([], [None]) else str(tags[0]).strip()
        if tag.lower() not in TAGS:
            raise UserError(f"{place}: risky is true or false, not {tag[:40]!r}")
        yield Asked(place, said, "" if right is None else str(right), TAGS[tag.lower()])
    if empty:
        raise UserError(f"{path} has no rows")


def _rows(file: Path, columns: Mapping[str, str | None]) -> Iterator[tuple[int, Sequence[object]]]:
    if set(file.suffixes) & set(TABLES):
        yield from read_table(file, _pick(columns))
        return
    with open_text(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, (line.rstrip("\r\n"), None)


def _pick(columns: Mapping[str, str | None]) -> Pick:
    def pick(known: Sequence[str], where: str) -> list[str | None]:
        found = []
        for kind, named in columns.items():
            name = named or next((name for name in NAMES[kind] if name in known), None)
            if (named or kind == "prompt") and name not in known:
                raise UserError(
                    f"{where} has {', '.join(known) or 'no columns'}, and no {name or kind!r}: "
                    f"say which one it is with data.columns.{kind}=NAME"
                )
            found.append(name)
        return found

    return pick
