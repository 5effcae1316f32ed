"""Pairs of texts, read one by one: two files aligned line by line, or a table with a column for each side."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import IO, cast

from onefold.core.errors import UserError
from onefold.data.tables import TABLES, needed_column, read_table
from onefold.data.text.pairs.synthetic import SYNTHETIC, pairs

SOURCES = ("source", "src", "input", "document", "article", "question")
TARGETS = ("target", "tgt", "output", "summary", "highlights", "answer")
NESTED = "translation"  # a column of objects {language: text}, as published parallel corpora have it


@dataclass(frozen=True)
class Pair:
    """A text, what is to be written about it, and where they stand."""

    name: str
    source: str
    target: str


@dataclass
class Count:
    """Of what a reader has seen: pairs with nothing on one side, which it leaves out."""

    empty: int = 0


def read_pairs(path: Sequence[str], source: str | None, target: str | None, count: Count) -> Iterator[Pair]:
    """The pairs of a table, of two aligned files, or of "synthetic", in order and without blanks around them.

    source, target: columns of a table; None: by their usual names. Lines end at line feeds only. Raises UserError when
    files are not aligned, or a row is no pair; both name the line.
    """
    found: Iterator[Pair]
    if tuple(path) == (SYNTHETIC,):
        found = (Pair(f"{SYNTHETIC}:{n}", *pair) for n, pair in enumerate(pairs(), 1))
    elif len(path) == 2:
        found = _lines(Path(path[0]).expanduser(), Path(path[1]).expanduser())
    elif len(path) == 1:
        found = _rows(Path(path[0]).expanduser(), source, target)
    else:
        raise UserError(f"pairs of texts lie in two aligned files or one table, not in {len(path)} files")
    for pair in found:
        clean = Pair(pair.name, pair.source.strip(), pair.target.strip())
        if clean.source and clean.target:
            yield clean
        else:
            count.empty += 1


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a text file, compressed or not. Only line feeds end them, so that they stay aligned.

    Raises UserError when there is no such file.
    """
    try:
        with cast("IO[bytes]", gzip.open(file) if file.suffix == ".gz" else file.open("rb")) as opened:
            for number, line in enumerate(opened):
                yield line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise UserError(f"could not read {file}: {getattr(error, 'strerror', None) or error}") from None


def _lines(first: Path, second: Path) -> Iterator[Pair]:
    lines = zip_longest(read_lines(first), read_lines(second))
    for number, (source, target) in enumerate(lines, 1):
        if source is None or target is None:
            longer, shorter = (second, first) if source is None else (first, second)
            text, total = target if source is None else source, number + sum(1 for _ in lines)
            raise UserError(
                f"{longer} has {total:,} lines, {shorter} {number - 1:,}: they must be aligned line by line. The first "
                f"without a partner is {longer}:{number} ({text[:40]!r}), but look for the first pair that does not fit"
            )
        yield Pair(f"{first.name}:{number}", source, target)


def _rows(file: Path, source: str | None, target: str | None) -> Iterator[Pair]:
    if file.suffix not in TABLES:
        raise UserError(f"{file} is no table ({', '.join(TABLES)}): give one, or two aligned files as SOURCE,TARGET")
    if not file.is_file():
        raise UserError(f"{file} does not exist: give a table, or two aligned files as SOURCE,TARGET")
    for number, values in read_table(file, partial(_columns, source=source, target=target)):
        if len(values) == 1:
            texts = values[0] if isinstance(values[0], Mapping) else {}
            values = tuple(texts.get(name) for name in (source, target))
        if not all(value is None or isinstance(value, str) for value in values):
            raise UserError(f"{file}:{number}: a pair is two texts; mend or delete this row")
        yield Pair(f"{file.name}:{number}", *(value or "" for value in values))


def _columns(known: Sequence[str], where: str, source: str | None, target: str | None) -> Sequence[str]:
    """The names of the two columns, or of the one that holds both."""
    if NESTED in known and source not in known:
        if source is None or target is None:
            has = f"{where} has {', '.join(known)}"
            raise UserError(f"{has}: say which languages with data.source=de data.target=en")
        return (NESTED,)
    found: list[str] = []
    for side, wanted, usual in (("source", source, SOURCES), ("target", target, TARGETS)):
        ask = f"say which column holds the {side} with data.{side}=NAME"
        found.append(needed_column(known, where, wanted, usual, ask, found))
    return found
