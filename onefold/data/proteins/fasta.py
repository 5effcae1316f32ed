"""FASTA: a line with > and a name, then lines of letters, one for each amino acid."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import LETTERS

SUFFIXES = (".fasta", ".fa", ".faa", ".fas", ".afa")
_CLEAN = str.maketrans({" ": None, "\t": None, "J": "X"})  # J, leucine or isoleucine, has no letter of its own
_KNOWN = str.maketrans(dict.fromkeys(LETTERS))


class Chain(NamedTuple):
    """A protein: its name, the line of its file that it begins on, and its letters."""

    name: str
    line: int
    sequence: str


def read_fasta(lines: Iterable[str], file: object) -> Iterator[Chain]:
    """The chains of a file, one after the other; those without letters, too.

    Small letters become large ones, a * at the end (where translation stopped) is left out, and J is read as X. Raises
    UserError for other characters, naming `file` and line.
    """
    name, start, parts, stopped = None, 0, [], 0
    for number, line in enumerate(lines, 1):
        line = line.strip("\r\n\ufeff \t")
        if line.startswith(">"):
            if name is not None:
                yield Chain(name, start, "".join(parts))
            name, start, parts, stopped = line[1:].strip(), number, [], 0
        elif line and not line.startswith(";"):  # an old way to comment
            if name is None:
                raise UserError(f"{file}:{number}: a FASTA file begins with a line > and a name")
            if stopped:
                raise UserError(f"{file}:{stopped}: a * within a sequence; it may only end one")
            letters = line.upper().translate(_CLEAN)
            if letters.endswith("*"):
                letters, stopped = letters[:-1], number
            if odd := letters.translate(_KNOWN):
                told = "a * within a sequence; it may only end one" if "*" in odd else f"{odd[0]!r} is no amino acid"
                raise UserError(f"{file}:{number}: {told}")
            parts.append(letters)
    if name is not None:
        yield Chain(name, start, "".join(parts))
