"""What the recipes of encoder-decoders share: a small setting, and what their checks ask."""

import json
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onefold.core.files import atomic_write
from onefold.data.text.corruption.sequences import Sequences, framed
from onefold.data.text.dataset import Dataset
from onefold.data.text.pairs.seq2seq import seq2seq_batch
from onefold.infer.model import load
from onefold.models.seq2seq import Seq2SeqConfig
from onefold.training.run import Result

VOCAB = 2048  # of the miniatures
CORPUS = Path(sysconfig.get_paths()["stdlib"]) / "email"  # which checks read: 0.4 MB of code and prose
HELD_OUT = 0.2  # share of its files that no model of a check sees
WORDS = 100  # that tasks are about: the most frequent ones of the corpus
PAIRS, TESTED = 3000, 100  # of each task
PROBED = 300  # texts with a gap

# Made from some words: how many they are, and what is to be written about them.
TASKS: dict[str, tuple[range, Callable[[list[str]], str]]] = {
    "copy": (range(1, 4), " ".join),
    "reverse": (range(2, 4), lambda words: " ".join(reversed(words))),
    "upper": (range(1, 3), lambda words: " ".join(words).upper()),
    "count": (range(1, 6), lambda words: str(len(words))),
}


def shrunk(model: Seq2SeqConfig, vocab: int, width: int, context: int, depth: int = 2) -> Seq2SeqConfig:
    """The model with `depth` layers a side and four heads, without dropout."""
    own = {} if model.encoder.block.mixer.head_width is None else {"head_width": width // 4}
    heads = {"heads": 4, "dropout": 0.0} | own
    block = {"mixer": heads, "ffn": {"width": 4 * width}, "dropout": 0.0}
    position = {"position": {"context": context}} if model.embed.position else {}
    shape = {"vocab": vocab, "width": width, "context": context, "init": "fan_in"}
    return model.but(
        {
            **shape,
            "embed": {"dropout": 0.0, **position},
            "encoder": {"depth": depth, "block": block},
            "decoder": {"depth": depth, "block": {**block, "cross": heads}},
        }
    )


def words() -> list[str]:
    """The most frequent words of the corpus."""
    found: Counter[str] = Counter()
    for file in sorted(CORPUS.rglob("*.py")):
        found.update(re.findall(r"\b[a-z]{3,8}\b", file.read_text(encoding="utf-8")))
    return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:WORDS]]


def tables() -> dict[str, tuple[Path, Path]]:
    """Of each task a table to learn from and one to be judged by, which share no input."""
    folder = Path("runs/check/tasks")
    files = {name: (folder / f"{name}.jsonl", folder / f"{name}-held-out.jsonl") for name in TASKS}
    if all(file.is_file() for pair in files.values() for file in pair):
        return files
    known, generator = words(), np.random.default_rng(0)
    for name, (counts, task) in TASKS.items():
        rows: dict[str, str] = {}
        while len(rows) < PAIRS + TESTED:
            chosen = [str(w) for w in generator.choice(known, generator.choice(counts), replace=False)]
            rows.setdefault(" ".join(chosen), task(chosen))
        lines = [json.dumps({"input": given, "target": wanted}) + "\n" for given, wanted in rows.items()]
        generator.shuffle(lines)
        for file, some in zip(files[name], (lines[TESTED:], lines[:TESTED])):
            atomic_write(file, "".join(some))
    return files


def exact_matches(result: Result, name: str) -> float:
    """Share of a task's held-out inputs about which the model writes just what it should."""
    rows = [json.loads(line) for line in tables()[name][1].read_text().splitlines()]
    written = load(result.out).generate([f"{name}: {row['input']}" for row in rows], max_new_tokens=32)
    return float(np.mean([text == row["target"] for text, row in zip(written, rows)]))


def guessed(name: str) -> float:
    """The share that would be right if the most frequent answer were always given."""
    learned, tested = (
        [json.loads(line)["target"] for line in file.read_text().splitlines()] for file in tables()[name]
    )
    best = Counter(learned).most_common(1)[0][0]
    return tested.count(best) / len(tested)


@torch.no_grad()
def span_losses(result: Result, dataset: Dataset) -> tuple[float, float]:
    """Nats for a hidden token of the held-out text: by the model, and by how often each occurs in what it learned from.

    Sentinels and ends, of which there is little to guess, do not count.
    """
    counts = np.ones(dataset.tokenizer.size)
    for document in dataset.text("train"):
        counts += np.bincount(dataset.tokenizer.encode(document.text), minlength=len(counts))
    costs, network = -np.log(counts / counts.sum()), load(result.out).network
    ordinary = np.ones(len(costs), bool)
    ordinary[[*dataset.tokenizer.sentinels, dataset.tokenizer.end]] = False
    ours, theirs = [], []
    for batch in dataset.evaluation("held_out", 64):
        asked = (batch.weights > 0) & torch.from_numpy(ordinary)[batch.targets]
        logits = network(*batch.inputs()).float()[asked]
        ours.append(torch.nn.functional.cross_entropy(logits, batch.targets[asked], reduction="none"))
        theirs.append(costs[batch.targets[asked].numpy()])
    return torch.cat(ours).mean().item(), float(np.concatenate(theirs).mean())


@torch.no_grad()
def gap_errors(result: Result, length: int = 3) -> dict[str, float]:
    """Share of the hidden tokens of held-out texts that are not guessed: by the model, and by counts.

    A text has one gap, of `length` tokens, in its middle. All are told what stands before each of these, the model also
    what follows the gap.
    """
    model, dataset = load(result.out), result.run.data.prepare(result.out / "data", keep=True)
    tokenizer, room = dataset.tokenizer, dataset.context - 4
    pairs, texts = np.zeros((tokenizer.size, tokenizer.size)), list(_pieces(dataset, "held_out", room))[:PROBED]
    for ids in _pieces(dataset, "train", room):
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    middle, before, after = room // 2, tokenizer.prefix, [tokenizer.end]
    whole = np.array(texts)
    gapped = np.concatenate(
        (whole[:, :middle], np.full((len(whole), 1), tokenizer.mask), whole[:, middle + length :]), axis=1
    )
    sides = (Sequences(side, np.full(len(side), side.shape[1])) for side in (gapped, whole))
    rows = (framed(side, before, after, tokenizer.pad) for side in sides)
    batch = seq2seq_batch(*rows, tokenizer.decoder_start, tokenizer.pad)
    asked = slice(len(before) + middle, len(before) + middle + length)
    said = torch.cat([model.network(*part.inputs()).argmax(-1) for part in batch.split(50)])[:, asked].numpy()
    wanted, known = whole[:, middle : middle + length], whole[:, middle - 1 : middle + length - 1]
    guesses = {"model": said, "most frequent token": pairs.sum(0).argmax(), "pairs of tokens": pairs.argmax(1)[known]}
    return {name: float((guess != wanted).mean()) for name, guess in guesses.items()}


def _pieces(dataset: Dataset, split: Any, length: int) -> Iterator[list[int]]:
    for document in dataset.text(split):
        ids = dataset.tokenizer.encode(document.text)
        yield from (ids[i : i + length] for i in range(0, len(ids) - length + 1, length))
