"""Preferences as training data: rows of a table → records of two splits → batches of similar lengths.

What a reference model says of each row is a column that is added afterwards, kept under the hash of that model.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from onefold.core import dist
from onefold.core.batch import Batch, PreferenceBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder, exclusive, verify_folder
from onefold.core.progress import Progress, say
from onefold.data.ahead import to_tensor
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.loader import Evaluation, Loader
from onefold.data.order import Epoch, order_by_length
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import stamp
from onefold.data.split import choose, content_hash
from onefold.data.text.chat.answers import Bad, Row, Said, Task, encode_answer, read_answers
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.tokenizers.tokenizer import Tokenizer

SIDES = (("tokens", "learned"), ("other_tokens", "other_learned"))  # columns of either answer
COLUMNS = 8  # of a batch, a multiple of this: fewer different shapes
TOGETHER = 4096  # rows among which answers to other prompts are found


class ColumnNames(Config):
    """What a table calls its columns; None: by their usual names."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: str | None = None  # by how much the chosen answer is better, for reward models
    completion: str | None = None
    label: str | None = None


class PreferenceData(Config):
    """Rows of a CSV, TSV, JSONL or Parquet file that say what people preferred.

    By `task`, a prompt with a chosen and a rejected answer ("pairs"), or with one answer and whether it was liked
    ("labels", for KTO). Prompt and answers are text or messages; chosen and rejected may be whole conversations that
    begin alike. Rows that do not fit the context are left out, and counted.
    """

    kind: Literal["preferences"] = "preferences"
    path: str
    task: Task = "pairs"
    columns: ColumnNames = ColumnNames()
    chat: bool | None = None  # text becomes turns of a conversation; None: where the model has a chat template
    context: int = Field(default=512, ge=4)  # tokens of prompt and answer
    tokenizer: Annotated[TrainBPE | LoadTokenizer, Slot()] | None = None  # None: that of the model it begins with
    skip_bad: bool = False  # leave out rows that are not well-formed, and tell how many, instead of stopping
    held_out: float = Field(default=0.05, ge=0, le=0.5)  # share of the rows; of equal prompts all or none
    validation: str | None = None  # a table to evaluate on instead
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "PreferenceDataset":
        """The answers as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with; for conversations without a chat template it is given one, as ChatData
        does. keep: as in TextData. Raises UserError that names the file and the row when one is not as the task needs
        it, and when there is no tokenizer.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("preferences", what)
        stamps = {path: stamp(path) for path in (self.path, self.validation) if path}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = PreferenceDataset(target, self.context)
        if new:
            say(dataset.describe())
        return dataset

    def rows(self, bad: Bad = None) -> Iterator[tuple[Split, Row]]:
        """Every row in its split; those of `validation` come last. bad: see `read_answers`."""
        before = bad and _ignored
        keys, sizes = array("Q"), array("Q")
        for row in self._read(self.path, before):
            keys.append(self._key(row))
            sizes.append(1)
        own = {self._key(row) for row in self._read(self.validation, before)} if self.validation else set()
        split = choose(np.array(keys, np.uint64), np.array(sizes, np.int64), 0 if own else self.held_out)
        last = len(keys) * (1 - split.tail)  # rows from here on are held out where there are very few prompts
        for n, (row, key) in enumerate(zip(self._read(self.path, bad), keys)):  # rows first: bad ones may end the table
            if key not in own:
                yield SPLITS[split.whole(key) or n >= last], row
        if self.validation:
            for row in self._read(self.validation, bad):
                yield "held_out", row

    def _read(self, path: str, bad: Bad) -> Iterator[Row]:
        return read_answers(path, self.task, self.columns.to_dict(), bad)

    def _key(self, row: Row) -> int:
        return content_hash(_text(row.prompt), self.split_seed)

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        tokenizer, chat, mistakes = tokenizer or self._tokenizer(), self.chat, list[UserError]()
        bad = mistakes.append if self.skip_bad else None
        if chat is None:
            first = next(self._read(self.path, bad and _ignored), None)
            chat = tokenizer.chat_template is not None or (first is not None and first.turns)
        tokenizer = with_chat(tokenizer) if chat else tokenizer
        token = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
        texts = {name: Column("text") for name in ("name", "prompt", "first", "second")}
        columns = texts | {"margin": Column("float32"), "liked": Column("uint8")}
        for tokens, learned in SIDES:
            columns |= {tokens: Column(token, ragged=True), learned: Column("uint8", ragged=True)}
        facts: dict[Split, dict[str, int]] = {split: {"rows": 0, "tokens": 0, "too_long": 0} for split in SPLITS}
        hashed, margins = hashlib.blake2b(digest_size=8), False
        with (
            RecordsWriter(folder / "train", columns) as train,
            RecordsWriter(folder / "held_out", columns) as held_out,
            Progress("tokenizing", None, "rows") as bar,
        ):
            for split, row, answers in self._answers(chat, bad):
                bar.update()
                try:
                    sides = [_encoded(row, answer, tokenizer) for answer in answers]
                except UserError as error:
                    if bad is None:
                        raise
                    bad(error)
                    continue
                if self.task == "labels":  # of an answer that was given to another prompt, a part will do
                    sides[1] = tuple(part[: self.context] for part in sides[1])
                if any(len(ids) > self.context or not any(learned[1:]) for ids, learned in sides):
                    facts[split]["too_long"] += 1
                    continue
                said = {"prompt": _text(row.prompt), "first": _text(answers[0]), "second": _text(answers[1])}
                known = {"margin": row.margin, "liked": int(row.liked)}
                hashed.update(json.dumps([split, *said.values(), *known.values()]).encode())
                record = {"name": Path(row.place).name, **said, **known}
                for names, values in zip(SIDES, sides):
                    record |= dict(zip(names, values))
                (train if split == "train" else held_out).add(**record)
                facts[split]["rows"] += 1
                facts[split]["tokens"] += sum(len(ids) for ids, _ in sides)
                margins |= row.margin != 0
        if not facts["train"]["rows"]:
            raise UserError(
                f"{self.path}: no row is left to learn from; {facts['train']['too_long']:,} are longer than "
                f"data.context={self.context}"
            )
        card = {"answers": {"chat": chat}}  # how a reward model is asked later
        known = {"task": self.task, "margins": margins, "card": card, "vocab": tokenizer.size}
        known |= {"bad": len(mistakes), "first_bad": str(mistakes[0]) if mistakes else None}
        return tokenizer, {"hash": hashed.hexdigest(), **facts, **known}

    def _answers(self, chat: bool, bad: Bad) -> Iterator[tuple[Split, Row, tuple[Said, Said]]]:
        """Each row with the two answers that its record holds: of a label, its own and one to another prompt."""
        waiting: dict[Split, list[Row]] = {split: [] for split in SPLITS}
        for split, row in self.rows(bad):
            if row.turns and not chat:
                raise UserError(f"{row.place} is a conversation: set data.chat=true, and other rows become such, too")
            row = row.as_turns() if chat else row
            if self.task == "pairs":
                yield split, row, (row.answers[0], row.answers[1])
                continue
            some = waiting[split]
            some.append(row)
            if len(some) == TOGETHER:
                yield from ((split, row, answers) for row, answers in _mismatched(some))
                some.clear()
        for split, some in waiting.items():
            yield from ((split, row, answers) for row, answers in _mismatched(some))

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("preferences need the tokenizer of a model: begin with start=…, or set data.tokenizer")
        rows = self.rows(_ignored if self.skip_bad else None)
        texts = (text for split, row in rows if split == "train" for text in (row.prompt, *row.answers))
        return self.tokenizer.build(map(_text, texts))


class PreferenceDataset:
    """What `prepare` returns."""

    batch: type[Batch] = PreferenceBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, context: int):
        self.folder, self.context = folder, context
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self._records = {split: Records(folder / split) for split in SPLITS}
        self._said: dict[Split, Records] = {}  # by a reference
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, int] | None = None
    ) -> Loader[Epoch, PreferenceBatch]:
        """Endless shuffled batches of rows of similar length, `rows` over all processes together.

        Every row comes once in an epoch; the last batch of one is filled up with rows that it began with.
        """
        self._check(split)
        return Loader(partial(self.plan, split, rows, seed), partial(self._batch, split), rows, rank, world, state)

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> Epoch:
        """What the loader reads in an epoch."""
        order = order_by_length(self._lengths(split), rows, seed, epoch)
        return Epoch(epoch, np.resize(order, -(-len(order) // rows) * rows), rows)

    def evaluation(self, split: Split, rows: int) -> Evaluation[Epoch, PreferenceBatch]:
        """Every row of the split once, always in the same order, of which any beginning is a fair sample."""
        self._check(split)
        order = order_by_length(self._lengths(split), rows)
        return Evaluation(Epoch(0, order, rows), partial(self._batch, split), len(order), rows)

    def longest(self, rows: int) -> PreferenceBatch:
        """The longest rows to learn from: what memory has to hold."""
        order = np.argsort(self._lengths("train"))[-rows:]
        return self.rows("train", np.resize(order, rows))

    def size(self, split: Split) -> int:
        """Rows."""
        return self.facts[split]["rows"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config, if it reads these tokens; with `grow`, one whose vocabulary has room for new tokens."""
        return fit_tokens(model, self.tokenizer, self.context, grow)

    def texts(self, split: Split) -> Iterator[tuple[str, str, str]]:
        """(prompt, first answer, second answer) of each row; conversations as JSON."""
        records = self._records[split]
        for i in range(len(records)):
            yield str(records["prompt"][i]), str(records["first"][i]), str(records["second"][i])

    def rows(self, split: Split, rows: np.ndarray) -> PreferenceBatch:
        """A batch of these rows of a split."""
        records = self._records[split]
        lengths = [records.ragged(tokens).lengths[rows] for tokens, _ in SIDES]
        width = min(-(-int(max(map(np.max, lengths))) // COLUMNS) * COLUMNS, self.context)
        found = [self._side(records, names, rows, width) for names in SIDES]
        most = max(places.shape[1] for _, places, _, _ in found)
        wide = [(tokens, *(_widened(part, most) for part in parts)) for tokens, *parts in found]
        tokens, places, targets, weights = (to_tensor(np.stack(parts, axis=1)) for parts in zip(*wide))
        said = self._said[split].strided("said").gather(rows) if self._said else None
        labels = self.facts["task"] == "labels"
        return PreferenceBatch(
            tokens=tokens,
            lengths=to_tensor(np.stack(lengths, axis=1).astype(np.int64)),
            places=places,
            targets=targets,
            weights=weights,
            margins=to_tensor(records.strided("margin").gather(rows)) if self.facts["margins"] else None,
            liked=to_tensor(records.strided("liked").gather(rows).astype(np.float32)) if labels else None,
            reference=None if said is None else to_tensor(said),
        )

    # What a reference says

    def know(self, reference: str) -> bool:
        """Whether it is known what the model of this hash says of each row; if so, batches have it from now on."""
        folder = self._said_by(reference)
        known = dist.broadcast(folder.is_dir() and not verify_folder(folder))
        if known:
            self._said = {split: Records(folder / split) for split in SPLITS}
        return known

    def ask(self, reference: str, say_of: Callable[[PreferenceBatch], Float[Tensor, "B 2"]], rows: int) -> None:
        """Keep what the model of this hash says of each row, asked `rows` at a time by all processes together.

        say_of: the log-probabilities of both answers of each row.
        """
        told = {split: self._asked(split, say_of, rows) for split in SPLITS}
        if dist.is_main():
            folder = self._said_by(reference)
            with exclusive(folder), atomic_folder(folder) as temporary:
                for split, values in told.items():
                    with RecordsWriter(temporary / split, {"said": Column("float32", shape=(2,))}) as out:
                        for value in values:
                            out.add(said=value)
        dist.barrier()
        self.know(reference)

    def _asked(self, split: Split, say_of: Callable, rows: int) -> np.ndarray:
        order = np.argsort(self._lengths(split), kind="stable")
        found = np.full((len(order), 2), np.nan, np.float32)
        with Progress(f"asking the reference ({split})", len(order), "rows") as bar:
            for start in range(0, len(order), rows * dist.world()):
                some = order[start : start + rows * dist.world()]
                mine = some[dist.rank() :: dist.world()]
                mine = mine if len(mine) else some[:1]  # all processes compute as often as the others
                said = say_of(self.rows(split, mine)).double()
                told = np.concatenate((mine[:, None].astype(np.float64), said.cpu().numpy()), axis=1)
                whole = dist.gather_rows(said.new_tensor(told))[0].cpu().numpy()
                found[whole[:, 0].astype(np.int64)] = whole[:, 1:]
                bar.update(len(some))
        if len(bad := np.flatnonzero(~np.isfinite(found).all(1))):
            name = self._records[split]["name"][int(bad[0])]
            raise UserError(
                f"the reference gives an answer of {name} no probability: it is damaged, or its dtype too narrow"
            )
        return found

    def _said_by(self, reference: str) -> Path:
        """Beside the records, and of no others."""
        return self.folder.with_name(f"{self.folder.name}-{self.facts['hash']}-{reference}")

    def describe(self) -> str:
        """One line: what each split holds, and what was left out."""
        what = "pairs of answers" if self.facts["task"] == "pairs" else "answers with labels"
        line = f"{self.size('train'):,} {what} to learn from, {self.size('held_out'):,} held out"
        if long := sum(self.facts[split]["too_long"] for split in SPLITS):
            line += f"; {long:,} left out as longer than {self.context} tokens (data.context)"
        if self.facts["bad"]:
            line += f"; {self.facts['bad']:,} left out, the first: {self.facts['first_bad']}"
        return line

    def _lengths(self, split: Split) -> np.ndarray:
        return np.maximum(*(self._records[split].ragged(tokens).lengths for tokens, _ in SIDES))

    def _batch(self, split: Split, epoch: Epoch, places: slice) -> PreferenceBatch:
        return self.rows(split, epoch.order[places])

    def _side(
        self, records: Records, names: tuple[str, str], rows: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """tokens [B, width], and of those of the answer places, targets and weights [B, K]."""
        columns = [records.ragged(name) for name in names]
        starts, lengths = columns[0].starts[rows], columns[0].lengths[rows]
        real = np.arange(width) < lengths[:, None]
        tokens, learned = np.full(real.shape, self._pad, np.int64), np.zeros(real.shape, np.uint8)
        tokens[real] = columns[0].gather(starts, lengths)  # row after row, as they lie
        learned[real] = columns[1].gather(columns[1].starts[rows], lengths)
        row, before = np.nonzero(learned[:, 1:])  # a text's first token cannot be predicted
        counts = np.bincount(row, minlength=len(rows))
        inside = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.zeros((len(rows), max(1, int(counts.max()))), np.int64)
        targets, weights = np.zeros_like(places), np.zeros(places.shape, np.float32)
        places[row, inside], targets[row, inside], weights[row, inside] = before, tokens[row, before + 1], 1
        return tokens, places, targets, weights

    def _check(self, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"no split named {split}; there are {', '.join(SPLITS)}")
        if not self.size(split):
            reason = "set held_out above 0, or give a validation file" if split == "held_out" else "give more rows"
            raise UserError(f"the {split} split of the data is empty: {reason}")


def _mismatched(rows: list[Row]) -> Iterator[tuple[Row, tuple[Said, Said]]]:
    """Each row with its own answer and one to another prompt, where there is another."""
    prompts = [_text(row.prompt) for row in rows]
    order = np.random.default_rng(0).permutation(len(rows))
    for n, i in enumerate(order.tolist()):
        others = (int(order[(n + step) % len(rows)]) for step in range(1, len(rows)))
        other = next((j for j in others if prompts[j] != prompts[i]), int(order[(n + 1) % len(rows)]))
        yield rows[i], (rows[i].answers[0], rows[other].answers[0])


def _encoded(row: Row, answer: Said, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    try:
        ids, learned = encode_answer(row.prompt, answer, tokenizer)
    except UserError as error:  # of a template
        raise UserError(f"{row.place}: {error}") from None
    if not any(learned[1:]):
        raise UserError(f"{row.place}: the chat template leaves nothing of the answer to learn")
    return ids, learned


def _ignored(error: UserError) -> None:
    """What is wrong with a row is told when it is read for the last time."""


def _text(said: Said) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
