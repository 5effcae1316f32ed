"""How well a model predicts text: nats per token, perplexity, and bits per byte, which compares across tokenizers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.progress import Progress
from onefold.data.split import Split
from onefold.data.text.dataset import Dataset
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.engine import device_of, evaluating
from onefold.infer.generation.padding import padded
from onefold.infer.model import Model
from onefold.objectives.language import NextToken

SORTED_TOGETHER = 64  # batches of windows that are sorted by length, so that little is padded


@dataclass(frozen=True)
class Score:
    """What predicting a text cost: `nats` in all, over `tokens` predictions of `bytes` of UTF-8."""

    nats: float
    tokens: float
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e^loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.4f} bits per byte, loss {self.loss:.4f}, perplexity {self.perplexity:.2f} "
            f"({self.tokens:,.0f} tokens, {self.bytes:,} bytes)"
        )


def evaluate(network: nn.Module, batches: Iterable[TokenBatch], size: int) -> Score:
    """The cost of all targets in `batches`, which stand for `size` bytes of text."""
    objective = NextToken().build()
    nats, tokens = 0.0, 0.0
    with evaluating(network):
        for step, batch in enumerate(batches):
            term = objective(network, batch.to(device_of(network)), step).terms["ce"]
            nats, tokens = nats + float(term.sum), tokens + float(term.count)
    if not tokens:
        raise UserError("there is nothing to evaluate: the text is empty")
    return Score(nats, tokens, size)


def bits_per_byte(
    network: nn.Module, dataset: Dataset, split: Split, rows: int = 8, stride: int | None = None
) -> float:
    """Bits per byte of a split. `stride` None: documents are cut into pieces of one context, each read by itself.

    Otherwise windows overlap, and each predicts its last `stride` tokens.
    """
    return evaluate(network, dataset.evaluation(split, rows, stride), dataset.bytes(split)).bits_per_byte


class Sliding(Config):
    """Windows over long texts. The more they overlap, the more context each prediction has, and the more it costs."""

    context: int | None = None  # tokens a window; None: the model's own
    stride: int | None = None  # from one window to the next; None: half a window
    rows: int = 8  # windows read at once

    def windows(self, ids: list[int]) -> Iterator[tuple[list[int], list[int], int]]:
        """(tokens, targets, how many of the last targets are new) until every id but the first was a target once."""
        length, stride = self.context, self.stride or max(1, self.context // 2)
        if stride > length:
            raise UserError(f"stride ({stride}) must not exceed the context ({length}): text between would go unread")
        done = 0  # targets predicted so far
        while done < len(ids) - 1:
            stop = min(length if done == 0 else done + stride, len(ids) - 1)
            start = max(0, stop - length)
            yield ids[start:stop], ids[start + 1 : stop + 1], stop - done
            done = stop


def evaluate_documents(model: Model, texts: Iterable[str], sliding: Sliding | None = None) -> Score:
    """The cost of predicting every byte of each text once, its end included, each from a fresh start."""
    sliding = sliding or Sliding()
    if sliding.context is None:
        sliding = sliding.but({"context": model.config.context})
    if model.context is not None and sliding.context > model.context:
        raise UserError(f"context={sliding.context} exceeds the model's context of {model.context}")
    sizes: list[int] = []
    batches = _batches(_windows(texts, model.tokenizer, sliding, sizes), sliding.rows)
    score = evaluate(model.network, batches, 0)
    return Score(score.nats, score.tokens, sum(sizes))


def evaluate_text(model: Model, data: str, **settings: Any) -> Score:
    """Evaluate on anything that can be trained on, print the result, and return it. Settings are those of `Sliding`."""
    from onefold.data.sources import read

    sliding = Sliding.from_dict(settings)
    with Progress("evaluating", unit="documents") as bar:
        score = evaluate_documents(model, (document.text for document in bar.over(read(data))), sliding)
    print(score)
    return score


def _windows(
    texts: Iterable[str], tokenizer: Tokenizer, sliding: Sliding, sizes: list[int]
) -> Iterator[tuple[list[int], list[int], int]]:
    for text in texts:
        sizes.append(len(text.encode()))
        # With a beginning-of-text token of its own, a text begins with that; else with what ends the one before.
        yield from sliding.windows([tokenizer.start, *tokenizer.encode(text), tokenizer.end])


def _batches(windows: Iterator[tuple[list[int], list[int], int]], rows: int) -> Iterator[TokenBatch]:
    while pool := list(islice(windows, rows * SORTED_TOGETHER)):
        pool.sort(key=lambda window: len(window[0]))
        for start in range(0, len(pool), rows):
            yield _batch(pool[start : start + rows])


def _batch(windows: list[tuple[list[int], list[int], int]]) -> TokenBatch:
    """Padded on the right, where causal attention never looks."""
    counted = [[0] * (len(read) - new) + [1] * new for read, _, new in windows]
    return TokenBatch(
        tokens=padded([read for read, _, _ in windows]),
        targets=padded([wanted for _, wanted, _ in windows]),
        weights=padded(counted).float(),
    )
