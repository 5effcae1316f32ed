"""FASTA: a line with > and a name, then lines of letters, one for each amino acid."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
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


def read_file(path: Path) -> Iterator[Chain]:
    """The chains of a file, also .gz. Raises UserError when it cannot be read or has none."""
    found = False
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for chain in read_fasta(lines, path):
                found = True
                yield chain
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} could not be read as FASTA: {error}") from None
    if not found:
        raise UserError(f"{path} holds no chains: give a FASTA file")


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
