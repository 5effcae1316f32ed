"""Tables: CSV, JSON lines, Parquet and datasets that `datasets` saved, a few columns of each row.

Whole numbers in a column of labels are names as they are, or places in the names that the table's schema gives.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onefold.core.errors import UserError
from onefold.data.sources import open_text

LABELS = ("label", "labels", "class", "category", "target")
ROWS = 64  # of Parquet, read at a time
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

Row = tuple[int, tuple[Any, ...]]  # its number, and what the wanted columns hold
# (the columns that there are, where) → those that are wanted; None: a column that is missing, and all its values are.
Pick = Callable[[Sequence[str], str], Sequence[str | None]]


def read_table(file: Path, pick: Pick) -> Iterator[Row]:
    """The rows of a file. Errors name the file, and where it can be, the row."""
    reader = _parquet if file.suffix == ".parquet" else _csv if file.suffix in (".csv", ".tsv") else _json_lines
    return reader(file, pick)


def usual_column(
    known: Sequence[str], where: str, wanted: str | None, usual: Sequence[str], taken: Sequence[str | None] = ()
) -> str | None:
    """The column that is wanted, else the first of its usual names that is there and not taken; None: there is none.

    Raises UserError where the one that is wanted is not there.
    """
    if wanted is not None and wanted not in known:
        raise UserError(f"{_has(known, where)}, and no {wanted!r}")
    return wanted or next((name for name in usual if name in known and name not in taken), None)


def needed_column(
    known: Sequence[str],
    where: str,
    wanted: str | None,
    usual: Sequence[str],
    ask: str,
    taken: Sequence[str | None] = (),
) -> str:
    """The same where there has to be one. ask: what a person is told to say otherwise, in a UserError."""
    name = usual_column(known, where, wanted, usual, taken)
    if name is None:
        raise UserError(f"{_has(known, where)}: {ask}")
    return name


def _has(known: Sequence[str], where: str) -> str:
    return f"{where} has {', '.join(known) if known else 'no columns'}"


def read_arrow(file: Path, pick: Pick) -> Iterator[Row]:
    """The rows of one file of a saved dataset: an Arrow stream."""
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            yield from _rows(iter(stream), pick(stream.schema.names, str(file)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}") from None


def arrow_schema(file: Path) -> pa.Schema:
    """Of one file of a saved dataset."""
    try:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            return stream.schema
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """The names that a Hugging Face schema gives to the numbers of the label column, or of the lists in it."""
    label = label or next((name for name in LABELS if name in schema.names), None)
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        feature = feature.get("feature") or feature
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def label_name(value: Any, classes: Sequence[str] | None, place: str) -> str | None:
    """What a label is called; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # what a column of whole numbers with gaps becomes
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
        if not 0 <= value < len(classes):
            raise UserError(f"{place}: label {value} is out of range: there are {len(classes)} classes, from 0")
        return classes[value]
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{place}: a label must be a name or a number, not {type(value).__name__}")


def _csv(file: Path, pick: Pick) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        rows = csv.DictReader(opened, delimiter="\t" if file.suffix == ".tsv" else ",")
        try:
            wanted = pick(rows.fieldnames or [], str(file))
            for row in rows:
                yield rows.line_num, tuple(name and row[name] for name in wanted)
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: not valid CSV ({error})") from None


def _json_lines(file: Path, pick: Pick) -> Iterator[Row]:
    with open_text(file) as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}:{number}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: no object with named values")
            yield number, tuple(name and row[name] for name in pick(list(row), f"{file}:{number}"))


def _parquet(file: Path, pick: Pick) -> Iterator[Row]:
    wanted = pick(parquet_schema(file).names, str(file))
    try:
        with pq.ParquetFile(file) as opened:
            yield from _rows(opened.iter_batches(ROWS, columns=[name for name in wanted if name]), wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _rows(batches: Iterator[pa.RecordBatch], wanted: Sequence[str | None]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        columns = [batch.column(name) if name else None for name in wanted]
        for i in range(len(batch)):
            number += 1
            yield number, tuple(None if column is None else column[i].as_py() for column in columns)
