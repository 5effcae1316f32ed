"""Prompts for a model that learns from its own answers: rows of a file → records of two splits → phases of answers."""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from onefold.core import dist
from onefold.core.batch import Batch, RolloutBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.columns import Column
from onefold.data.facts import PROCESSOR, read_facts
from onefold.data.order import order
from onefold.data.prepared import SPLITS, Split, folder_name, prepared
from onefold.data.records import Records, RecordsWriter
from onefold.data.sources import stamp
from onefold.data.split import choose, content_hash
from onefold.data.text.chat.messages import chat_ids, with_chat
from onefold.data.text.chat.prompts import Asked, read_prompts
from onefold.data.text.dataset import fit_tokens
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import WRITES
from onefold.infer.rollouts.pool import Pool
from onefold.infer.rollouts.rewards import Answer, Rewards
from onefold.infer.rollouts.rollout import Memory, Policy, Prompt, Rollouts, assemble, of_all, wrote
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.transformer import DecoderConfig


class PromptColumns(Config):
    """What a table calls its columns; None: by their usual names."""

    prompt: str | None = None
    answer: str | None = None  # the right one, for rewards that compare
    risky: str | None = None  # whether a prompt may lead to what does harm, for rewards that are combined


class RolloutData(Config):
    """Prompts, which the model in training answers: rows of a CSV, TSV, JSONL, Parquet or text file.

    A phase is `samples` answers to each of `prompts` prompts, from which training learns `epochs` times, a batch at a
    time. Answers are drawn from the whole distribution at `temperature`, so that ratios are those of what was drawn
    from. With `best` a phase is the so many best answers that were ever given to each of its prompts (rejection
    sampling, Llama 2, arXiv 2307.09288, section 3.2.3). A prompt that leaves no room in the context is left out, and
    counted.
    """

    kind: Literal["rollout"] = "rollout"
    path: str
    columns: PromptColumns = PromptColumns()
    chat: bool | None = None  # text becomes a turn of the user's; None: where the model has a chat template
    rewards: Rewards
    prompts: int = Field(default=16, ge=1)  # of a phase
    samples: int = Field(default=8, ge=1)  # answers to each
    best: int | None = Field(default=None, ge=1)  # of each prompt's answers, those of earlier phases too, that are kept
    epochs: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    context: int = Field(default=512, ge=4)  # tokens of prompt and answer
    held_out: float = Field(default=0.05, ge=0, le=0.5)  # share of the prompts
    validation: str | None = None  # a file of prompts to evaluate on instead
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> "RolloutDataset":
        """The prompts as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model that answers. keep: as in TextData. Raises UserError that names the file and the row
        when one is no prompt, and when there is no tokenizer.
        """
        if tokenizer is None:
            raise UserError("a model that learns from its own answers has to write already: begin with start=…")
        told = self.to_dict()
        what = {name: told[name] for name in ("path", "columns", "chat", "context", "held_out", "validation")}
        what |= {"split_seed": self.split_seed, "tokenizer": tokenizer.digest}
        target = Path(folder) / folder_name("prompts", what)
        stamps = {path: stamp(path) for path in (self.path, self.validation) if path}
        new = prepared(target, stamps, keep, lambda folder: self._build(folder, tokenizer))
        dataset = RolloutDataset(target, self)
        if new:
            say(dataset.describe())
        return dataset

    def rows(self) -> Iterator[tuple[Split, Asked]]:
        """Every prompt in its split; those of `validation` come last, and nothing is learned from them."""
        keys = array("Q", (self._key(row) for row in self._read(self.path)))
        own = {self._key(row) for row in self._read(self.validation)} if self.validation else set()
        share = 0 if self.validation else self.held_out
        split = choose(np.array(keys, np.uint64), np.ones(len(keys), np.int64), share)
        last = len(keys) * (1 - split.tail)  # rows from here on are held out where there are very few
        for n, (key, row) in enumerate(zip(keys, self._read(self.path))):
            if key not in own:
                yield SPLITS[split.whole(key) or n >= last], row
        if self.validation:
            for row in self._read(self.validation):
                yield "held_out", row

    def _read(self, path: str) -> Iterator[Asked]:
        return read_prompts(path, self.columns.prompt, self.columns.answer, self.columns.risky, tagged=True)

    def _key(self, row: Asked) -> int:
        return content_hash(json.dumps(row.prompt), self.split_seed)

    def _build(self, folder: Path, tokenizer: Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
        chat = self.chat
        if chat is None:
            chat = tokenizer.chat_template is not None
        tokenizer = with_chat(tokenizer) if chat else tokenizer
        token = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
        columns = {"prompt": Column("text"), "answer": Column("text"), "risky": Column("uint8")}
        columns |= {"tokens": Column(token, ragged=True)}
        facts: dict[Split, dict[str, int]] = {split: {"rows": 0, "tokens": 0, "too_long": 0} for split in SPLITS}
        hashed, longest = hashlib.blake2b(digest_size=8), 0
        with RecordsWriter(folder / "train", columns) as train, RecordsWriter(folder / "held_out", columns) as held_out:
            for split, row in self.rows():
                said = [{"role": "user", "content": row.prompt}] if chat and isinstance(row.prompt, str) else row.prompt
                if not isinstance(said, str) and not chat:
                    raise UserError(
                        f"{row.place} is a conversation, and the model has no chat template: data.chat=true"
                    )
                ids = tokenizer.prompt(said) if isinstance(said, str) else chat_ids(said, tokenizer)
                if len(ids) >= self.context:
                    facts[split]["too_long"] += 1
                    continue
                text = json.dumps(said)
                side = train if split == "train" else held_out
                side.add(prompt=text, answer=row.answer, risky=row.risky, tokens=ids)
                hashed.update(json.dumps([split, text, row.answer, *([True] if row.risky else [])]).encode())
                facts[split]["rows"] += 1
                facts[split]["tokens"] += len(ids)
                longest = max(longest, len(ids))
        if not facts["train"]["rows"]:
            known = f", or all stand in {self.validation}, too" if self.validation else ""
            raise UserError(f"{self.path}: no prompt is shorter than data.context={self.context}{known}")
        return tokenizer, {"hash": hashed.hexdigest(), **facts, "longest": longest, "card": {WRITES: True}}


class RolloutDataset:
    """What `prepare` returns. It has nothing to read before it follows a policy, which writes its batches."""

    batch: type[Batch] = RolloutBatch
    unit = batch.unit
    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, config: RolloutData):
        self.folder, self.config, self.context = folder, config, config.context
        self.facts: dict[str, Any] = read_facts(folder)
        self.processor = self.tokenizer = Tokenizer.load(folder / PROCESSOR)
        self._records = {split: Records(folder / split) for split in SPLITS}
        self._pad = self.tokenizer.pad if self.tokenizer.pad is not None else 0
        self._policy: Policy | None = None

    def follow(self, policy: Policy) -> None:
        """Whatever is read from now on is written by `policy`, as it is when it is needed."""
        self._policy = policy

    def loader(
        self, split: Split, rows: int, seed: int, rank: int = 0, world: int = 1, state: dict[str, Any] | None = None
    ) -> Rollouts:
        """Endless mini-batches of `rows` answers."""
        config = self.config
        size = config.prompts * (config.best or config.samples)
        return Rollouts(self, size, rows, config.epochs, seed, state, rank, world)

    def phase(self, number: int, seed: int, memory: Memory) -> tuple[RolloutBatch, Memory]:
        """All answers of a phase, judged. Prompts come in another order every time all have had their turn."""
        config, count = self.config, self.size("train")
        places = range(number * config.prompts, (number + 1) * config.prompts)
        chosen = [int(order(count, "random", seed, place // count)[place % count]) for place in places]
        asked = [prompt for row in chosen for prompt in [self.prompt("train", row)] * config.samples]
        own = dist.share(len(asked))
        mine = self._written(asked[own], [(seed, number, n) for n in range(own.start, own.stop)])
        written, rewards = self._of_all(*mine)
        groups = [group for group in range(config.prompts) for _ in range(config.samples)]
        if config.best:
            pool = Pool.of(memory)
            for group, ids, reward in zip(groups, written, rewards.tolist()):
                pool.add(chosen[group], reward, ids, config.best)
            kept = [(group, *answer) for group, row in enumerate(chosen) for answer in pool.best(row, config.best)]
            groups, scores, written = map(list, zip(*kept))
            asked, rewards = [asked[g * config.samples] for g in groups], torch.tensor(scores)
            memory = {**memory, **pool.memory()}
        return self.policy.judged(self._batch(asked, written, groups, rewards), memory)

    def evaluation(self, split: Split, rows: int) -> "Evaluation":
        """An answer to every prompt of the split, drawn with the same numbers each time."""
        if not self.size(split):
            raise UserError(
                f"the {split} split of the prompts is empty: set held_out above 0, or give a validation file"
            )
        return Evaluation(self, split, rows)

    def answered(self, split: Split, rows: range) -> RolloutBatch:
        """An answer to each of these prompts, to be measured."""
        asked = [self.prompt(split, row) for row in rows]
        written, rewards = self._written(asked, [(self.config.split_seed, 0, 0, row) for row in rows])
        return self.policy.compared(self._batch(asked, written, list(rows), rewards))

    def longest(self, rows: int) -> RolloutBatch:
        """Blank rows as long as any can become: what memory has to hold."""
        width = min(self.context, self.facts["longest"] + self.config.max_new_tokens)
        tokens, zeros = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width)
        learned = (torch.arange(width) >= width - self.config.max_new_tokens).float().expand(rows, width)
        return RolloutBatch(
            tokens=tokens,
            targets=tokens,
            weights=learned,
            rewards=zeros[:, 0],
            groups=tokens[:, 0],
            **dict.fromkeys(("old", "reference", "advantages", "values", "returns"), zeros),
            penalty=zeros[:, 0],
        )

    def size(self, split: Split) -> int:
        """Prompts."""
        return self.facts[split]["rows"]

    def figures(self, split: Split, sums: Mapping[str, float], share: float) -> dict[str, float]:
        """Nothing that an objective's own terms do not tell."""
        return {}

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config, if it writes and reads these tokens."""
        if not isinstance(model, DecoderConfig | RecurrentConfig):
            raise UserError("rollouts are written by models that go on with a text: begin with a decoder")
        fitted = fit_tokens(model, self.tokenizer, self.context, grow)
        return fitted.but({"prefix": True}) if getattr(model, "prefix", False) else fitted  # prompts stay prefixes

    def prompt(self, split: Split, row: int) -> Prompt:
        """What is asked in this row."""
        records = self._records[split]
        ids = records.ragged("tokens")
        found = ids.gather(ids.starts[[row]], ids.lengths[[row]]).tolist()
        said, right = str(records["prompt"][row]), str(records["answer"][row])
        return Prompt(found, json.loads(said), right, bool(records["risky"][row]))

    @property
    def policy(self) -> Policy:
        if self._policy is None:
            raise UserError("nobody has written these rollouts yet: they are made while a run trains")
        return self._policy

    def describe(self) -> str:
        """One line: what each split holds, and what was left out."""
        line = f"{self.size('train'):,} prompts to learn from, {self.size('held_out'):,} held out"
        if long := sum(self.facts[split]["too_long"] for split in SPLITS):
            line += f"; {long:,} left out that fill the context of {self.context} tokens (data.context)"
        return line

    def _written(self, asked: list[Prompt], seeds: list[tuple[int, ...]]) -> tuple[list[list[int]], Tensor]:
        """The ids of an answer to each prompt, its end included, and what they are worth."""
        config, policy = self.config, self.policy
        sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        rows = policy.write(asked, sampling, self.context, self.tokenizer, seeds)
        answers = [
            Answer(prompt.said, row.text, prompt.right, len(wrote(row)), row.end is not None, prompt.risky)
            for prompt, row in zip(asked, rows)
        ]
        return [wrote(row) for row in rows], policy.score(answers)

    def _of_all(self, written: list[list[int]], rewards: Tensor) -> tuple[list[list[int]], Tensor]:
        """What all processes have written, in the order of their shares."""
        if dist.world() == 1:
            return written, rewards
        ids = torch.full((len(written), self.config.max_new_tokens), -1)
        for row, answer in zip(ids, written):
            row[: len(answer)] = torch.tensor(answer)
        ids, rewards = (of_all(own, self.policy.device) for own in (ids, rewards))
        return [row[row >= 0].tolist() for row in ids], rewards

    def _batch(self, asked: list[Prompt], written: list[list[int]], groups: list[int], rewards: Tensor) -> RolloutBatch:
        both = getattr(self.policy.model.config, "prefix", False)  # it reads prompts in both directions
        return assemble(asked, written, groups, rewards, self._pad, self.config.temperature, both)


class Evaluation:
    """Batches of `rows` answers to the prompts of a split, once; written anew each time it is iterated."""

    def __init__(self, dataset: RolloutDataset, split: Split, rows: int):
        self._dataset, self._split, self.rows = dataset, split, rows
        self.count = dataset.size(split)

    def __len__(self) -> int:
        return -(-self.count // self.rows)

    def __iter__(self) -> Iterator[RolloutBatch]:
        return self.share(0, 1)

    def share(self, rank: int, world: int) -> Iterator[RolloutBatch]:
        """Of each batch, what process `rank` of `world` writes: see onefold.data.loader.Evaluation."""
        for start in range(0, self.count, self.rows):
            rows = min(self.rows, self.count - start)
            begin, end = (start + rows * i // world for i in (rank, rank + 1))
            batch = self._dataset.answered(self._split, range(begin, max(end, begin + 1)))
            yield replace(batch, counted=end > begin)
