"""Where labelled text comes from: tables, datasets saved by `datasets`, CoNLL columns, SQuAD's JSON, WordNet, passages.

Every mistake in a row is told with its file and line.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.data.own_splits import own_splits
from onefold.data.prepared import Split
from onefold.data.sources import STDLIB, dataset_files, is_dataset, open_text
from onefold.data.tables import (
    TABLES,
    arrow_schema,
    class_names,
    needed_column,
    parquet_schema,
    read_arrow,
    read_table,
    usual_column,
)
from onefold.data.text.labelled import wordnet
from onefold.data.text.labelled.labels import TASKS, Example
from onefold.data.text.labelled.passages import passages

CONLL = (".conll", ".conll2003", ".bio", ".iob", ".iob2", ".txt")
NEW_DOCUMENT = "-DOCSTART-"
KINDS = ("text", "second", "label")  # what the three columns are called in the settings

Values = tuple[str, tuple[Any, Any, Any]]  # file and line, what the three columns hold


@dataclass(frozen=True)
class Part:
    """Some rows of a source: what the numbers in their label column are called, and the split that they are of."""

    rows: Callable[[], Iterator[Values]]
    names: tuple[str, ...] | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Rows:
    """Which task rows are for, and which columns of a table hold text, second text and label; None: by usual names."""

    task: str
    columns: tuple[str | None, str | None, str | None] = (None, None, None)

    def read(self, path: str, split: Split | None = None, passages_held_out: tuple[float, int] = (0.0, 0)):
        """The examples of a source. split: of all of them; None: the source's own, where it has some.

        passages_held_out: share and seed of the files whose passages are held out. Raises UserError.
        """
        if path == STDLIB and self.task == "sequence":
            found = passages(*passages_held_out)
            yield from (Example(p.name, p.text, "", p.package, split or p.split) for p in found)
            return
        empty, task = True, TASKS[self.task]
        for part in self._parts(path, split is None):
            for place, values in part.rows():
                empty = False
                yield Example(Path(place).name, *task.parse(*values, part.names, place), split or part.split)
        if empty:
            raise UserError(f"{path} has no rows")

    def classes(self, path: str) -> tuple[str, ...] | None:
        """The names that the source itself gives to its classes, in order."""
        return None if path == STDLIB else next((p.names for p in self._parts(path, True) if p.names), None)

    def _parts(self, path: str, split: bool) -> list[Part]:
        if path == wordnet.NAME or (wordnet.folder(path) and self.task == "sequence"):
            return [Part(partial(wordnet.read, wordnet.folder(path) or Path(path)))]
        root = Path(path).expanduser()
        if is_dataset(root):
            parts = dataset_files(root)
            splits = own_splits(parts, root) if split else {}
            files = [(f, splits.get(name)) for name, own in parts.items() if not splits or name in splits for f in own]
            return [self._table(read_arrow, f, arrow_schema(f), own) for f, own in files]
        if root.is_file():
            if set(root.suffixes) & set(TABLES):
                return [self._table(read_table, root, parquet_schema(root) if root.suffix == ".parquet" else None)]
            if self.task == "token" and root.suffix in CONLL:
                return [Part(partial(_conll, root))]
            if self.task == "span" and root.suffix == ".json":
                return [Part(partial(_squad, root))]
        more = {"token": "a CoNLL file of words and tags, ", "span": "a .json file as SQuAD's, "}.get(self.task, "")
        gone = "does not exist" if not root.exists() else "is no table"
        raise UserError(f"{path} {gone}: give a file ({', '.join(TABLES)}), {more}or a dataset saved by `datasets`")

    def _table(self, reader, file: Path, schema=None, split: Split | None = None) -> Part:
        names = class_names(schema, self._pick(schema.names, str(file))[2]) if schema is not None else None
        rows = lambda: ((f"{file}:{number}", values) for number, values in reader(file, self._pick))  # noqa: E731
        return Part(rows, names, split)

    def _pick(self, known: Sequence[str], where: str) -> tuple[str, str | None, str]:
        """The names of the three columns."""
        found: list[str | None] = []
        for kind, wanted, usual in zip(KINDS, self.columns, TASKS[self.task].usual):
            if usual:
                what = f"{usual[0]} (task={self.task})" if self.task in ("token", "span") else kind
                ask = f"say which column holds the {what} with data.{kind}=NAME"
                found.append(needed_column(known, where, wanted, usual, ask, found))
            else:
                found.append(usual_column(known, where, wanted, usual))
        return tuple(found)  # type: ignore[return-value]


def _conll(file: Path) -> Iterator[Values]:
    """A word a line, its tag last, between blanks or tabs; an empty line ends a sentence (CoNLL-2003 and its kin)."""
    words: list[str] = []
    tags: list[str] = []
    begun = 0
    with open_text(file) as opened:
        for number, line in enumerate(chain(opened, [""]), 1):
            fields = line.split("\t") if "\t" in line else line.split()
            fields = [field.strip() for field in fields]
            if not any(fields) or fields[0] == NEW_DOCUMENT:
                if words:
                    yield f"{file}:{begun}", (words, None, tags)
                words, tags = [], []
                continue
            if len(fields) < 2 or not fields[0] or not fields[-1]:
                raise UserError(f"{file}:{number}: no word and tag: {line.strip()[:40]!r}")
            begun = begun if words else number
            words.append(fields[0])
            tags.append(fields[-1])


def _squad(file: Path) -> Iterator[Values]:
    """SQuAD's own file (Rajpurkar et al., arXiv 1606.05250; with questions that have no answer: 1806.03822)."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                for question in paragraph["qas"]:
                    place = f"{file}:{question.get('id') or f'data[{a}].paragraphs[{p}]'}"
                    answers = [] if question.get("is_impossible") else question.get("answers")
                    yield place, (question.get("question"), paragraph["context"], answers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error} where SQuAD's files have one" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is not as SQuAD's files are: {what}") from None
