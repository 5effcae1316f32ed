"""Texts and what is known of them: rows of a table → records of two splits → batches of similar lengths."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from onefold.core.batch import Batch, LabelledTextBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.ahead import to_tensor
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.order import Epoch, order_by_length
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import STDLIB, stamp
from onefold.data.split import choose
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.labelled import wordnet
from onefold.data.text.labelled.labels import TASKS, Example
from onefold.data.text.labelled.rows import Rows
from onefold.data.text.tokenizers.symbols import Symbols
from onefold.data.text.tokenizers.tokenizer import Tokenizer

COLUMNS = 8  # of a batch, a multiple of this: fewer different shapes
TOGETHER = 512  # rows tokenized at once


class LabelledTextData(Config):
    """Texts and what is known of them: a CSV, TSV, JSONL or Parquet file, or a dataset saved by `datasets`, with its
    splits.

    By `task`, that is a class ("sequence"; of "stdlib", passages of the standard library, the package that they come
    from; of "wordnet", the kind of what a gloss explains), a number ("regression"), a tag for each word ("token"; also
    CoNLL files), or where in a second text an answer stands ("span"; also SQuAD's JSON).
    """

    kind: Literal["labelled_text"] = "labelled_text"
    path: str = STDLIB
    task: Literal["sequence", "token", "span", "regression"] = "sequence"
    text: str | None = None  # columns: the text…
    second: str | None = None  # …of a pair, the second one…
    label: str | None = None  # …and what is known. None: by their usual names, a second text for "span" alone
    context: int = Field(default=512, ge=4)  # tokens, special ones included: the end of longer texts is cut off…
    overlap: int = Field(default=64, ge=0)  # …or, for "token" and "span", read in windows that share so many of them
    tokenizer: Annotated[TrainBPE | LoadTokenizer | Symbols, Slot()] | None = None  # None: the model's
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share, where the source has no split of its own
    validation: str | None = None  # a source to evaluate on instead of rows held out
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "LabelledTextDataset":
        """The texts as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with. keep: as in TextData. Raises UserError that names the file and the row
        when one is not as the task needs it, and when there is no tokenizer.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("labelled-text", what)
        paths = [path for path in (self.path, self.validation) if path]
        titles = {wordnet.NAME: wordnet.TITLE}
        stamps = {titles.get(path, path): stamp(wordnet.folder(path) or path) for path in paths}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = LabelledTextDataset(target, self.context)
        if new:
            train, held_out = (f"{dataset.facts[split]['texts']:,}" for split in SPLITS)
            kinds = f" of {len(dataset.classes)} classes" if self.task in ("sequence", "token") else ""
            say(f"{train} texts{kinds} to learn from, {held_out} held out")
        return dataset

    def examples(self) -> list[Example]:
        """All rows in their splits; of equal texts all are in the same one. Raises UserError as `prepare` does."""
        found = list(self._rows.read(self.path, None, (self.held_out, self.split_seed)))
        own = list(self._rows.read(self.validation, "held_out")) if self.validation else []
        keys = np.array([row.key(self.split_seed) for row in found], np.uint64)
        aside = {row.key(self.split_seed) for row in own}
        sizes = np.array([len(row.text) + len(row.second) for row in found], np.int64)
        split = choose(keys, sizes, 0 if own or any(row.split for row in found) else self.held_out)
        first = len(found) * (1 - split.tail)  # of the last ones, which are held out when there are very few
        rows: list[Example] = []
        for n, (row, key) in enumerate(zip(found, keys.tolist())):
            if key not in aside:
                held_out = split.whole(key) or n >= first
                rows.append(row if row.split else replace(row, split=SPLITS[held_out]))
        return rows + own

    @property
    def _rows(self) -> Rows:
        return Rows(self.task, (self.text, self.second, self.label))

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        rows, task = self.examples(), TASKS[self.task]
        classes = self._classes(rows)
        if tokenizer is None:
            if self.tokenizer is None:
                raise UserError(
                    "labelled text needs a tokenizer: fine-tune a model with start=…, or set data.tokenizer"
                )
            tokenizer = self.tokenizer.build(t for row in rows if row.split == "train" for t in (row.text, row.second))
        facts = write_examples(folder, rows, len(rows), self.task, classes, tokenizer, self.context, self.overlap)
        card = task.card([row.label for row in rows if row.split == "train"])
        return tokenizer, facts | {"card": card}

    def _classes(self, rows: Sequence[Example]) -> list[str]:
        """As the source orders them, else as the task does. Errors: UserError for one that only validation has."""
        task = TASKS[self.task]
        names = set().union(*(task.names(row.label) for row in rows))
        classes = [name for name in self._rows.classes(self.path) or () if name in names]
        classes = classes if len(classes) == len(names) and names else task.order(names)
        if self.validation:
            learned = set().union(*(task.names(row.label) for row in rows if row.split == "train"))
            for row in rows:
                task.known(row, [name for name in classes if name in learned])
        return classes


def write_examples(
    folder: Path,
    rows: Iterable[Example],
    count: int,
    task: str,
    classes: Sequence[str],
    tokenizer: Tokenizer,
    context: int,
    overlap: int = 0,
) -> dict[str, Any]:
    """Write the records of both splits for LabelledTextDataset, and return their facts. count: of the rows."""
    columns = {
        "name": Column("text"),
        "text": Column("text"),
        "second": Column("text"),
        "known": Column("text"),  # the label as JSON; empty in all records of an example but the first
        "tokens": Column("uint32", ragged=True),
        "types": Column("uint8", ragged=True),
        **TASKS[task].columns,
    }
    facts: dict[str, Any] = {split: {"texts": 0, "records": 0, "tokens": 0} for split in SPLITS}
    hashed = hashlib.blake2b(digest_size=8)
    with (
        RecordsWriter(folder / "train", columns) as train,
        RecordsWriter(folder / "held_out", columns) as held_out,
        Progress("tokenizing", count, "texts") as bar,
    ):
        left = iter(rows)
        while some := list(islice(left, TOGETHER)):
            for row, records in zip(some, TASKS[task].records(some, classes, tokenizer, context, overlap)):
                known = json.dumps(row.label)
                hashed.update(json.dumps([row.split, row.text, row.second, known]).encode())
                said = {"text": row.text, "second": row.second, "known": known}
                for record in records:
                    (train if row.split == "train" else held_out).add(name=row.name, **said, **record)
                    facts[row.split]["records"] += 1
                    facts[row.split]["tokens"] += len(record["tokens"])
                    said = dict.fromkeys(said, "")
                facts[row.split]["texts"] += 1
                bar.update()
    return facts | {"hash": hashed.hexdigest(), "task": task, "classes": [*classes], "vocab": tokenizer.size}


class LabelledTextDataset:
    """What `prepare` returns; `classes` names what each output of a classifier means."""

    batch: type[Batch] = LabelledTextBatch
    unit = batch.unit

    def __init__(self, folder: Path, context: int):
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self.classes = tuple(self.facts["classes"])
        self.task = TASKS[self.facts["task"]]
        self.context = context
        self._records = {split: Records(folder / split) for split in SPLITS}
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, int] | None = None
    ) -> Loader[Epoch, LabelledTextBatch]:
        """Endless shuffled batches of texts of similar length, `rows` over all processes together.

        Every text comes once in an epoch; the last batch of one is filled up with texts that it began with.
        """
        self._check(split)
        return Loader(partial(self.plan, split, rows, seed), partial(self._batch, split), rows, rank, world, state)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> Epoch:
        """What the loader reads in an epoch."""
        order = order_by_length(self._records[split].ragged("tokens").lengths, rows, seed, epoch)
        return Epoch(epoch, np.resize(order, -(-len(order) // rows) * rows), rows)

    def evaluation(self, split: Split, rows: int) -> Evaluation[Epoch, LabelledTextBatch]:
        """Every text of the split once, always in the same order, of which any beginning is a fair sample."""
        self._check(split)
        order = order_by_length(self._records[split].ragged("tokens").lengths, rows)
        return Evaluation(Epoch(0, order, rows), partial(self._batch, split), len(order), rows)

    def longest(self, rows: int) -> LabelledTextBatch:
        """The longest texts to learn from: what memory has to hold."""
        order = np.argsort(self._records["train"].ragged("tokens").lengths)[-rows:]
        return self._batch("train", Epoch(0, np.resize(order, rows), rows), slice(0, rows))

    def size(self, split: Split) -> int:
        """Records: texts, or windows over them."""
        return self.facts[split]["records"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config for these texts and classes; said where it was made otherwise.

        Errors: UserError when it cannot classify texts, or these tokens are not its own.
        """
        fields, task = type(model).model_fields, self.task.model["task"]
        if "classes" not in fields or ("task" not in fields and task != "sequence"):
            what = {"token": "tags words", "span": "finds answers"}.get(task, "classifies texts")
            raise UserError(f"these data need a model that {what}, not a {getattr(model, 'kind', 'stranger')}")
        model = fit_tokens(model, self.tokenizer, self.context, grow)
        outputs = len(self.classes) or 1
        if model.classes != outputs and not grow:
            say(f"the model is made for the data: model.classes={outputs} instead of {model.classes}")
        # What hid behind masks is not asked for; one vector a text comes as in published classifiers.
        asked, known = {"classes": outputs, "masked": None, **self.task.model}, type(model).model_fields
        if "task" not in known and asked["task"] != "sequence":
            raise UserError(f"a {getattr(model, 'kind', 'stranger')} model classifies whole texts only")
        return model.but({name: value for name, value in asked.items() if name in known})

    def examples(self, split: Split) -> Iterator[Example]:
        """The rows of a split."""
        records = self._records[split]
        for i in range(len(records)):
            if known := str(records["known"][i]):
                text, second = str(records["text"][i]), str(records["second"][i])
                yield Example(str(records["name"][i]), text, second, json.loads(known), split)

    def texts(self, split: Split) -> Iterator[tuple[str, str, Any]]:
        """(text, second text, label) of each row."""
        return ((row.text, row.second, row.label) for row in self.examples(split))

    def _batch(self, split: Split, epoch: Epoch, places: slice) -> LabelledTextBatch:
        records, rows = self._records[split], epoch.order[places]
        columns = [records.ragged(name) for name in ("tokens", "types")]
        starts, lengths = columns[0].starts[rows], columns[0].lengths[rows]
        width = min(-(-int(lengths.max()) // COLUMNS) * COLUMNS, self.context)
        real = np.arange(width) < lengths[:, None]
        laid = [np.full(real.shape, empty, np.int64) for empty in (self._pad, 0)]
        for values, column in zip(laid, columns):
            values[real] = column.gather(starts, lengths)  # row after row, as they lie
        values = {name: self._values(records, name, rows, column) for name, column in self.task.columns.items()}
        targets = self.task.targets(values, real, self.facts)
        return LabelledTextBatch(
            tokens=to_tensor(laid[0]),
            targets=to_tensor(targets),
            segments=None if real.all() else to_tensor(1 - real.astype(np.int64)),
            types=to_tensor(laid[1]) if laid[1].any() else None,
        )

    @staticmethod
    def _values(records: Records, name: str, rows: np.ndarray, column: Column) -> np.ndarray:
        if not column.ragged:
            return records.strided(name).gather(rows)
        ragged = records.ragged(name)
        return ragged.gather(ragged.starts[rows], ragged.lengths[rows])

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.size(split):
            reason = "set held_out above 0, or give a validation file" if split == "held_out" else "give more texts"
            raise UserError(f"the {split} split of the data is empty: {reason}")
