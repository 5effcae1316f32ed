"""From logits to the next token: what shapes the distribution, and a draw from it that no other row can disturb.

The order is that of the field's tools: repetition penalty, what is barred, temperature, top-k, top-p, min-p.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BeforeValidator, Field
from torch import Tensor

from onefold.core.config import Config
from onefold.infer.generation.barred import Barred


def _strings(value: object) -> object:
    """One stop string, several or None, as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else value


class Sampling(Config):
    """How a text is continued. The default is greedy, and so the same every time."""

    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)  # 0: always the likeliest token
    top_k: int | None = Field(None, ge=0)  # only the k likeliest; 0: all
    top_p: float | None = Field(None, gt=0, le=1)  # only the likeliest that together reach p (arXiv 1904.09751)
    min_p: float | None = Field(None, ge=0, le=1)  # only those at least p times as likely as the first (2407.01082)
    repetition_penalty: float = Field(1.0, gt=0)  # on logits of tokens read or written before (1909.05858)
    no_repeat_ngram_size: int = Field(0, ge=0)  # no n tokens in a row come twice, prompt included; 0: they may
    min_new_tokens: int = Field(0, ge=0)  # before that many, nothing ends a text but `stop`
    seed: int | None = None  # None: different every time
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_strings)] = ()
    beams: int = Field(1, ge=1)  # more than 1: beam search instead of sampling
    length_penalty: float = 1.0  # for beams: a in score = log-probability / length^a
    length_norm: Literal["power", "gnmt"] = "power"  # "gnmt": ((5 + length) / 6)^a instead (arXiv 1609.08144)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


def probabilities(
    logits: Float[Tensor, "B V"], sampling: Sampling, seen: Bool[Tensor, "B V"] | None = None
) -> Float[Tensor, "B V"]:
    """The distribution that the next token is drawn from. `seen`: tokens that the repetition penalty concerns."""
    logits = penalize(logits, sampling.repetition_penalty, seen)
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    kept, ids = _candidates(logits, sampling)
    kept = kept / kept.sum(1, keepdim=True)
    return kept if ids is None else torch.zeros_like(logits).scatter_(1, ids, kept)


def penalize(logits: Float[Tensor, "B V"], penalty: float, seen: Bool[Tensor, "B V"] | None) -> Float[Tensor, "B V"]:
    """fp32 logits, those of seen tokens divided by the penalty where positive and multiplied where negative."""
    logits = logits.float()
    if penalty == 1.0 or seen is None:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Weights of the tokens that may follow, not normalised, and their ids (None: all, in order). Each [B, K]."""
    ids = None
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[1]:
        logits, ids = logits.topk(sampling.top_k)
    weights = logits.softmax(1)
    if sampling.top_p is not None and sampling.top_p < 1:
        if ids is None:
            weights, ids = _reaching(weights, sampling.top_p)
        # A token stays when those before it do not reach p: the first always does.
        weights = weights.masked_fill(weights.cumsum(1) - weights >= sampling.top_p, 0.0)
    if sampling.min_p:
        weights = weights.masked_fill(weights < sampling.min_p * weights.amax(1, keepdim=True), 0.0)
    return weights, ids


def _reaching(weights: Tensor, mass: float, enough: int = 256) -> tuple[Tensor, Tensor]:
    """The largest weights and their ids, in order, at least as many as reach `mass`. Sorting all is slow, and rare."""
    if enough < weights.shape[1]:
        largest, ids = weights.topk(enough)
        if bool((largest.sum(1) >= mass).all()):
            return largest, ids
    return weights.sort(dim=1, descending=True)


def likeliest(logits: Float[Tensor, "B V"], part: int = 128) -> Int[Tensor, " B"]:
    """argmax(1), the first of several; on a CPU in a third of the time: maxima of parts first, which are vectorised."""
    if logits.device.type != "cpu" or logits.shape[1] < part:
        return logits.argmax(1)
    whole = logits.shape[1] // part * part
    parts = logits[:, :whole].unflatten(1, (-1, part))
    largest, place = parts.amax(2).max(1)
    best = place * part + parts[torch.arange(len(parts)), place].argmax(1)
    if whole == logits.shape[1]:
        return best
    largest_left, left = logits[:, whole:].max(1)
    return torch.where(largest_left > largest, whole + left, best)


def most_likely(
    logits: Float[Tensor, "B V"], count: int, part: int = 128
) -> tuple[Float[Tensor, "B count"], Int[Tensor, "B count"]]:
    """topk(count, 1), on a CPU in the way of `likeliest`: the largest stand in the parts with the largest maxima."""
    whole = logits.shape[1] // part * part
    if logits.device.type != "cpu" or whole < 2 * count * part:
        return logits.topk(count)
    parts = logits[:, :whole].unflatten(1, (-1, part))
    places = parts.amax(2).topk(count).indices  # [B, count]
    some = parts.gather(1, places[..., None].expand(-1, -1, part)).flatten(1)
    ids = (places[..., None] * part + torch.arange(part)).flatten(1)
    if whole < logits.shape[1]:
        some = torch.cat((some, logits[:, whole:]), dim=1)
        ids = torch.cat((ids, torch.arange(whole, logits.shape[1]).expand(len(ids), -1)), dim=1)
    values, chosen = some.topk(count)
    return values, ids.gather(1, chosen)


class Sampler:
    """Draws the next token of every row.

    Each row brings its own source of randomness and takes one number a step from it, so that what it becomes does not
    depend on the rows beside it.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        randoms: Sequence[np.random.Generator],
        sampling: Sampling,
        steps: int,
        vocab: int,
        device: torch.device | str = "cpu",
        ends: Sequence[Collection[int]] | None = None,  # ids that end each row
    ):
        self.sampling = sampling
        ends = ends or [()] * len(prompts)
        self.barred = Barred(prompts, ends, sampling.no_repeat_ngram_size, sampling.min_new_tokens, vocab, device)
        self.step = 0
        self.uniform: Tensor | None = None  # Float[B, steps]: all drawn at once, nothing crosses to the device later
        self.seen: Tensor | None = None  # Bool[B, V]
        if not sampling.greedy:
            self.uniform = torch.from_numpy(np.stack([r.random(steps, np.float32) for r in randoms])).to(device)
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(len(prompts), vocab, dtype=torch.bool)
            for row, ids in enumerate(prompts):
                self.seen[row, list(ids)] = True
            self.seen = self.seen.to(device)

    def __call__(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        chosen = self._choose(self.barred(penalize(logits, self.sampling.repetition_penalty, self.seen)))
        self.barred.write(chosen)
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        self.step += 1
        return chosen

    def _choose(self, logits: Tensor) -> Tensor:
        if self.uniform is None:
            return likeliest(logits)
        weights, ids = _candidates(logits, self.sampling)
        # Inverse of the cumulative distribution. u < 1, and "right" skips tokens of weight 0.
        reached = weights.cumsum(1)
        place = torch.searchsorted(reached, self.uniform[:, self.step, None] * reached[:, -1:], right=True)
        place = place.clamp(max=weights.shape[1] - 1)
        return (place if ids is None else ids.gather(1, place))[:, 0]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows only."""
        self.uniform = None if self.uniform is None else self.uniform[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        self.barred.keep(rows)


def randomness(sampling: Sampling, prompt: Sequence[int], copy: int = 0) -> np.random.Generator:
    """The source of one row: a function of the seed, the prompt, and which of several equal prompts this is."""
    if sampling.seed is None:
        return np.random.default_rng()
    return np.random.default_rng((sampling.seed % 2**64, copy, *prompt))
