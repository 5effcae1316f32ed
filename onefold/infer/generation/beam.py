"""Beam search: the likeliest whole continuations instead of the likeliest next tokens.

Every prompt keeps `beams` open hypotheses. One that ends is scored log-probability / penalty(length) and set aside; the
search of a prompt is over when no open hypothesis could still beat the worst of `beams` ended ones. Lengths count the
token that ends a text, as does its log-probability.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.infer.generation.barred import Barred
from onefold.infer.generation.continuation import Finish
from onefold.infer.generation.engine import device_of, left_pad, read
from onefold.infer.generation.sampling import Sampling, most_likely


@dataclass(frozen=True, order=True)
class Hypothesis:
    score: float  # log-probability / penalty(length)
    ids: list[int] = field(compare=False)  # without the token that ended it
    finish: Finish = field(compare=False)


def length_penalty(length: int, sampling: Sampling) -> float:
    """What a log-probability is divided by: length^a, or GNMT's ((5 + length) / 6)^a (arXiv 1609.08144, eq. 14)."""
    base = length if sampling.length_norm == "power" else (5 + length) / 6
    return float(base**sampling.length_penalty)


class _Search:
    """The hypotheses of one prompt that have ended."""

    def __init__(self, beams: int, budget: int, sampling: Sampling, counted: int):
        self.beams, self.budget, self.sampling, self.counted = beams, budget, sampling, counted
        self.ended: list[Hypothesis] = []

    def add(self, log_probability: float, length: int, ids: list[int], finish: Finish) -> None:
        score = log_probability / self._penalty(length)
        self.ended = sorted([*self.ended, Hypothesis(score, ids, finish)], reverse=True)[: self.beams]

    def over(self, best_open: float, length: int) -> bool:
        """Whether nothing open can still get in: log-probabilities only fall, so longest and shortest bound it."""
        if length >= self.budget or best_open == -math.inf:
            return True
        if len(self.ended) < self.beams:
            return False
        reachable = max(best_open / self._penalty(n) for n in (length + 1, self.budget))
        return self.ended[-1].score >= reachable

    def _penalty(self, length: int) -> float:
        return length_penalty(self.counted + length, self.sampling)


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    sampling: Sampling,
    ends: Collection[int] = (),
    counted: int = 0,
) -> list[list[Hypothesis]]:
    """For each prompt its `sampling.beams` best continuations of at most its budget of tokens, best first.

    counted: how many of the last tokens of each prompt are part of a text's length.
    """
    if not sampling.greedy or sampling.repetition_penalty != 1.0:
        raise UserError("beam search takes no temperature and no repetition penalty; leave them out, or set beams=1")
    if not prompts:
        return []
    device, B, K = device_of(model), len(prompts), sampling.beams
    searches = [_Search(K, budget, sampling, counted) for budget in budgets]
    tokens, positions = left_pad(prompts, device)
    state = model.init_state(B, tokens.shape[1] + max(budgets) - 1)
    logits = model.head(read(model, tokens, positions, state))
    _fork(state, B, K, device)
    # All beams of a prompt begin alike: only the first counts, or each token would be chosen K times.
    scores = torch.full((B, K), -math.inf, device=device)
    scores[:, 0] = 0.0
    written = torch.empty((B, K, 0), dtype=torch.long, device=device)
    logits = logits[:, None].expand(B, K, -1)
    barred = Barred(
        prompts, [ends] * B, sampling.no_repeat_ngram_size, sampling.min_new_tokens, logits.shape[-1], device
    )
    barred.keep(torch.arange(B, device=device).repeat_interleave(K))
    open_prompts = list(range(B))
    for length in range(1, max(budgets) + 1):
        each = barred(logits.float().log_softmax(-1).flatten(0, 1))
        scores, parents, chosen = _step(scores, each, searches, open_prompts, written, ends, length)
        still = [i for i, p in enumerate(open_prompts) if not searches[p].over(float(scores[i, 0]), length)]
        if not still:
            break
        index = torch.tensor(still, device=device)
        scores, parents, chosen = scores[index], parents[index], chosen[index]
        open_prompts = [open_prompts[i] for i in still]
        origin = (index[:, None] * K + parents).flatten()
        state.reorder(origin)
        barred.keep(origin)
        barred.write(chosen.flatten())
        before = written[index].gather(1, parents[..., None].expand(-1, -1, length - 1))
        written = torch.cat((before, chosen[..., None]), dim=2)
        logits = model.head(model.features(chosen.reshape(-1, 1), state=state)[:, -1]).view(len(still), K, -1)
    return [search.ended for search in searches]


def _fork(state: Any, rows: int, beams: int, device: torch.device) -> None:
    """Every row becomes its beams; a state that knows how keeps once what they share."""
    if hasattr(state, "fork"):
        state.fork(beams)
    else:
        state.reorder(torch.arange(rows, device=device).repeat_interleave(beams))


def _step(
    scores: Tensor,  # Float[b, K]
    each: Tensor,  # Float[b · K, V], log-probabilities
    searches: Sequence[_Search],
    open_prompts: Sequence[int],
    written: Tensor,  # Long[b, K, length - 1]
    ends: Collection[int],
    length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The K best extensions of every open prompt: their scores, parents and tokens, each [b, K], best first.

    What ends is put aside, where it ranks among the first K as it stands; enough candidates are looked at that K
    others are left even if every possible end is among them.
    """
    b, K = scores.shape
    enough = min(K * (1 + len(ends)), each.shape[1])
    likely, ids = most_likely(each, enough)
    total = scores[..., None] + likely.view(b, K, enough)
    best, place = total.flatten(1).topk(min(K * (1 + len(ends)), K * enough))
    parents, tokens = place // enough, ids.view(b, -1).gather(1, place)
    last = torch.zeros_like(best, dtype=torch.bool)
    for end in ends:
        last |= tokens == end
    for i, prompt in enumerate(open_prompts):
        search = searches[prompt]
        first = (t[i, :K].tolist() for t in (best, last, parents, tokens))
        for value, ended, parent, token in zip(*first):
            if value > -math.inf and (ended or length == search.budget):
                ids = written[i, parent].tolist() + ([] if ended else [token])
                search.add(value, length, ids, "stop" if ended else "length")
    best = best.masked_fill(last, -math.inf)
    best, order = best.topk(min(K, best.shape[1]), dim=1)
    best = torch.nn.functional.pad(best, (0, K - best.shape[1]), value=-math.inf)
    order = torch.nn.functional.pad(order, (0, K - order.shape[1]))
    return best, parents.gather(1, order), tokens.gather(1, order)
