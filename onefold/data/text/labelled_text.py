"""Texts, or pairs of texts, and what each is: rows of a table → records of two splits → batches of similar lengths."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from onefold.core.batch import LabelledTextBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.data.ahead import to_tensor
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.order import Epoch, order_by_length
from onefold.data.own_splits import own_splits
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import STDLIB, dataset_files, is_dataset, stamp
from onefold.data.split import choose, content_hash
from onefold.data.tables import (
    LABELS,
    TABLES,
    arrow_schema,
    class_names,
    label_name,
    parquet_schema,
    read_arrow,
    read_table,
)
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.passages import passages
from onefold.data.text.tokenizer import Tokenizer

TEXTS = ("text", "sentence", "content", "review", "sentence1", "premise", "question")
COLUMNS = 8  # of a batch, a multiple of this: fewer different shapes
TOGETHER = 4096  # rows tokenized at once


class LabelledTextData(Config):
    """Texts and their classes: a CSV, TSV, JSONL or Parquet file, or a dataset saved by `datasets` with its splits.

    "stdlib" is passages of the standard library and the packages that they come from.
    """

    kind: Literal["labelled_text"] = "labelled_text"
    path: str = STDLIB
    text: str | None = None  # columns: the text…
    second: str | None = None  # …of a pair, the second one…
    label: str | None = None  # …and its class, a name or a number. None: by their usual names, without a second text
    context: int = Field(default=512, ge=4)  # tokens, special ones included: of longer texts the end is cut off
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] | None = None  # None: that of the model it fine-tunes
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share, where the source has no split of its own
    validation: str | None = None  # a source to evaluate on instead of rows held out
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "LabelledTextDataset":
        """The texts as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with. keep: as in TextData. Raises UserError when a row has no label, or there
        is no tokenizer.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("labelled-text", what)
        stamps = {path: stamp(path) for path in (self.path, self.validation) if path}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = LabelledTextDataset(target, self.context)
        if new:
            train, held_out = (dataset.size(split) for split in SPLITS)
            say(f"{train:,} texts of {len(dataset.classes)} classes to learn from, {held_out:,} held out")
        return dataset

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        rows = list(self._rows())
        names = sorted({row.label for row in rows}, key=_natural)
        classes = [name for name in self._schema_names() or () if name in names]
        classes = classes if len(classes) == len(names) else names
        if tokenizer is None:
            if self.tokenizer is None:
                raise UserError(
                    "labelled text needs a tokenizer: fine-tune a model with start=…, or set data.tokenizer"
                )
            tokenizer = self.tokenizer.build(t for row in rows if row.split == "train" for t in (row.text, row.second))
        columns = {
            "name": Column("text"),
            "text": Column("text"),
            "second": Column("text"),
            "label": Column("int32"),
            "tokens": Column("uint32", ragged=True),
            "types": Column("uint8", ragged=True),
        }
        facts: dict[str, Any] = {split: {"texts": 0, "tokens": 0} for split in SPLITS}
        hashed, place = hashlib.blake2b(digest_size=8), {name: i for i, name in enumerate(classes)}
        with (
            RecordsWriter(folder / "train", columns) as train,
            RecordsWriter(folder / "held_out", columns) as held_out,
            Progress("tokenizing", len(rows), "texts") as bar,
        ):
            for start in range(0, len(rows), TOGETHER):
                some = rows[start : start + TOGETHER]
                seconds = [row.second for row in some] if self.second else None
                framed = tokenizer.encode_framed([row.text for row in some], seconds, self.context)
                for row, (tokens, types) in zip(some, framed):
                    hashed.update(json.dumps([row.split, row.text, row.second, row.label]).encode())
                    writer = train if row.split == "train" else held_out
                    texts = {"name": row.name, "text": row.text, "second": row.second}
                    writer.add(**texts, label=place[row.label], tokens=tokens, types=types)
                    facts[row.split]["texts"] += 1
                    facts[row.split]["tokens"] += len(tokens)
                    bar.update()
        return tokenizer, {"hash": hashed.hexdigest(), "classes": classes, **facts, "vocab": tokenizer.size}

    def _rows(self) -> "Iterator[_Row]":
        """All rows in their splits; of equal texts all are in the same one."""
        found = list(_read(self.path, self))
        own = list(_read(self.validation, self, "held_out")) if self.validation else []
        keys = np.array([row.key(self.split_seed) for row in found], np.uint64)
        aside = {row.key(self.split_seed) for row in own}
        sizes = np.array([len(row.text) + len(row.second) for row in found], np.int64)
        split = choose(keys, sizes, 0 if own or any(row.split for row in found) else self.held_out)
        first = len(found) * (1 - split.tail)  # of the last ones, which are held out when there are very few
        for n, (row, key) in enumerate(zip(found, keys.tolist())):
            if key not in aside:
                held_out = split.whole(key) or n >= first
                yield _Row(row.name, row.text, row.second, row.label, row.split or SPLITS[held_out])
        yield from own

    def _schema_names(self) -> tuple[str, ...] | None:
        path = Path(self.path).expanduser()
        if is_dataset(path):
            return class_names(arrow_schema(next(f for own in dataset_files(path).values() for f in own)), self.label)
        return class_names(parquet_schema(path), self.label) if path.suffix == ".parquet" else None


class LabelledTextDataset:
    """What `prepare` returns; `classes` names what each output of a classifier means."""

    unit = "tokens"

    def __init__(self, folder: Path, context: int):
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self.classes = tuple(self.facts["classes"])
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

    def size(self, split: Split) -> int:
        """Texts."""
        return self.facts[split]["texts"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config for these texts and classes; said where it was made otherwise.

        Errors: UserError when it cannot classify texts, or these tokens are not its own.
        """
        if "classes" not in type(model).model_fields:
            raise UserError(
                f"these data need a model that classifies texts, not a {getattr(model, 'kind', 'stranger')}"
            )
        model = fit_tokens(model, self.tokenizer, self.context, grow)
        if model.classes != len(self.classes) and not grow:
            say(f"the model is made for the data: model.classes={len(self.classes)} instead of {model.classes}")
        # What hid behind masks is not asked for; one vector a text comes as in published classifiers.
        return model.but({"classes": len(self.classes), "task": "sequence", "pooler": True, "masked": None})

    def texts(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """(text, second text, class) of each row."""
        records = self._records[split]
        for i in range(len(records)):
            yield str(records["text"][i]), str(records["second"][i]), self.classes[int(records["label"][i])]

    def _batch(self, split: Split, epoch: Epoch, places: slice) -> LabelledTextBatch:
        records, rows = self._records[split], epoch.order[places]
        columns = [records.ragged(name) for name in ("tokens", "types")]
        starts, lengths = columns[0].starts[rows], columns[0].lengths[rows]
        width = min(-(-int(lengths.max()) // COLUMNS) * COLUMNS, self.context)
        real = np.arange(width) < lengths[:, None]
        laid = [np.full(real.shape, empty, np.int64) for empty in (self._pad, 0)]
        for values, column in zip(laid, columns):
            values[real] = column.gather(starts, lengths)  # row after row, as they lie
        targets = np.eye(len(self.classes), dtype=np.float32)[records.strided("label").gather(rows)]
        return LabelledTextBatch(
            tokens=to_tensor(laid[0]),
            targets=to_tensor(targets),
            segments=None if real.all() else to_tensor(1 - real.astype(np.int64)),
            types=to_tensor(laid[1]) if laid[1].any() else None,
        )

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.size(split):
            reason = "set held_out above 0, or give a validation file" if split == "held_out" else "give more texts"
            raise UserError(f"the {split} split of the data is empty: {reason}")


@dataclass(frozen=True)
class _Row:
    name: str
    text: str
    second: str
    label: str
    split: Split | None = None

    def key(self, seed: int) -> int:
        return content_hash(f"{self.text}\0{self.second}", seed)


def _read(path: str, data: LabelledTextData, split: Split | None = None) -> Iterator[_Row]:
    """The rows of a source; `split` is that of all, None: of the source's own, if it has some."""
    if path == STDLIB:
        found = passages(data.held_out, data.split_seed)
        yield from (_Row(p.name, p.text, "", p.package, split or p.split) for p in found)
        return
    root = Path(path).expanduser()
    pick = partial(_columns, text=data.text, second=data.second, label=data.label)
    files: list[tuple[Path, Any]]
    if is_dataset(root):
        parts = dataset_files(root)
        splits = own_splits(parts, root) if split is None else {}
        files = [(f, splits.get(name)) for name, own in parts.items() if not splits or name in splits for f in own]
        reader, names = read_arrow, class_names(arrow_schema(files[0][0]), data.label) if files else None
    elif root.is_file() and set(root.suffixes) & set(TABLES):
        files, reader = [(root, None)], read_table
        names = class_names(parquet_schema(root), data.label) if root.suffix == ".parquet" else None
    else:
        raise UserError(f"{path} is no table: give a file ({', '.join(TABLES)}), or a dataset saved by `datasets`")
    empty = True
    for file, own in files:
        for number, (text, second, label) in reader(file, pick):
            place, name = f"{file}:{number}", label_name(label, names, f"{file}:{number}")
            if name is None or not isinstance(text, str) or not isinstance(second or "", str):
                raise UserError(f"{place}: {'no label' if name is None else 'no text'}; mend or delete this row")
            empty = False
            yield _Row(f"{file.name}:{number}", text, second or "", name, split or own)
    if empty:
        raise UserError(f"{path} has no rows")


def _columns(
    known: Sequence[str], where: str, text: str | None, second: str | None, label: str | None
) -> tuple[str, str | None, str]:
    """The names of the three columns."""
    has = f"{where} has {', '.join(known) if known else 'no columns'}"
    for wanted in (text, second, label):
        if wanted is not None and wanted not in known:
            raise UserError(f"{has}, and no {wanted!r}")
    text = text or next((name for name in TEXTS if name in known), None)
    label = label or next((name for name in LABELS if name in known), None)
    for name, found in (("text", text), ("label", label)):
        if found is None:
            raise UserError(f"{has}: say which column holds the {name} with data.{name}=NAME")
    return str(text), second, str(label)


def _natural(name: str) -> tuple[float, str]:
    """Numbers by their size, before names."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
