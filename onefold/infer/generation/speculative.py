"""Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318): something cheap
proposes tokens, the model reads all of them at once, and keeps as many as it might have drawn itself.

    draft: y_1 … y_γ ~ q    model: p_1 … p_γ+1 in one pass    y_i stays with probability min(1, p_i / q_i);
    the first that does not is drawn again, from what p has more of than q; behind γ that stay comes one of p_γ+1

Whatever the draft says, the text has the model's own distribution (theorem 1). Reading a few tokens costs little more
than reading one, where weights are read from memory for a single text; with many texts at once the machine is busy
anyway, so this is for one text at a time. As much is proposed as pays, by what passes cost and by how often such
proposals stayed in this text: nothing at all behind words that come back too seldom.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import device_of, read
from onefold.infer.generation.sampling import Sampling, probabilities

MOST = 16  # tokens proposed at once
RATE = 0.1  # of the moving averages of what stays

# What reading so many tokens costs, where one costs 1: measured on an EPYC in fp32 (benchmarks/speculative.py).
# Constants, since a text that is drawn with a seed must not depend on a clock.
CPU = ((1, 1.0), (2, 1.4), (6, 1.5), (8, 1.8), (12, 2.1), (17, 2.6))
ELSEWHERE = ((1, 1.0), (17, 1.2))


def costs(device: torch.device) -> list[float]:
    """Of a pass with 0, 1, … MOST proposals, in those of a pass without."""
    tokens, cost = zip(*(CPU if device.type == "cpu" else ELSEWHERE))
    return np.interp(range(1, MOST + 2), tokens, cost).tolist()


def worth(chance: Callable[[int], float], costs: Sequence[float], each: float = 0.0) -> int:
    """How many proposals, of those that have a cost, make a text the fastest: tokens expected against the cost of the
    pass and of `each` proposal (arXiv 2211.17192, theorem 3.8). chance(i): that one stays whose i predecessors do."""
    best, count, stays, tokens = 1 / costs[0], 0, 1.0, 1.0
    for proposals in range(1, len(costs)):
        stays *= chance(proposals - 1)
        tokens += stays
        if (speed := tokens / (costs[proposals] + proposals * each)) > best:
            best, count = speed, proposals
    return count


class Draft(Protocol):
    """What proposes how a text may go on."""

    def begin(self, model: nn.Module) -> None:
        """What was learned of the last text matters no more: the next calls are of another, which `model` writes."""
        ...

    def propose(
        self, ids: Sequence[int], costs: Sequence[float], sampling: Sampling, random: np.random.Generator
    ) -> tuple[list[int], Float[Tensor, "γ V"] | None]:
        """Tokens that may follow, and the distributions that they were drawn from; None: they are sure. `costs` as in
        `worth`; there are to be fewer tokens than these.

        `ids` are those of one text, which grows from call to call.
        """
        ...


class NgramDraft:
    """The text goes on as it did where its last few tokens stood before: free, and good at what repeats itself
    (code, quotations, edited texts). The longest n-gram that was seen before counts, its newest place first; the longer
    the two places agree, the more is proposed."""

    KINDS = ((1, 0.3), (2, 0.5), (4, 0.7), (8, 0.9))  # agreement from so many tokens on, the next one's chance at first

    def __init__(self, longest: int = 8):
        self.longest = longest
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # n-gram → where its newest copy ends
        self._chances = [chance for _, chance in self.KINDS]
        self._guess: tuple[int, int, list[int]] | None = None  # tokens before it, agreement, and what would follow

    def begin(self, model: nn.Module) -> None:
        self._chances, self._guess = [chance for _, chance in self.KINDS], None

    def propose(
        self, ids: Sequence[int], costs: Sequence[float], sampling: Sampling, random: np.random.Generator
    ) -> tuple[list[int], None]:
        self._judge(ids)
        self._learn(ids)
        for n in range(min(self.longest, len(ids) - 1), 0, -1):
            if (place := self._places.get(tuple(ids[-n:]))) is not None:
                break
        else:
            return [], None
        following = list(ids[place : place + len(costs) - 1])
        self._guess = len(ids), n, following
        count = worth(lambda i: self._chances[self._kind(n + i)], costs[: len(following) + 1])
        return following[:count], None

    def _kind(self, agreement: int) -> int:
        return sum(agreement >= least for least, _ in self.KINDS) - 1

    def _judge(self, ids: Sequence[int]) -> None:
        """Whether what was guessed last did follow, proposed or not."""
        if self._guess is None:
            return
        before, agreement, following = self._guess
        self._guess = None
        for i, (guessed, came) in enumerate(zip(following, ids[before:], strict=False)):
            kind = self._kind(agreement + i)
            self._chances[kind] += RATE * ((guessed == came) - self._chances[kind])
            if guessed != came:
                return

    def _learn(self, ids: Sequence[int]) -> None:
        """Note all n-grams that something follows."""
        if list(ids[: len(self._ids)]) != self._ids:
            self._ids, self._places = [], {}
        for end in range(max(1, len(self._ids)), len(ids)):
            for n in range(1, min(self.longest, end) + 1):
                self._places[tuple(ids[end - n : end])] = end
        self._ids = list(ids)


class ModelDraft:
    """A smaller model that has the same tokens."""

    FIRST = 0.8  # chance that a token stays, before anything was seen

    def __init__(self, network: nn.Module, vocab: int, context: int | None = None, cost: float | None = None):
        """vocab: how many logits the model has that it writes for; families pad them differently. context: how many
        tokens the draft can read; beyond them it proposes nothing. cost: of a token of the draft's, where one of the
        model's costs 1; None: as their weights weigh."""
        self.network, self.vocab, self.context, self.cost = network, vocab, context, cost
        self._read: list[int] = []  # what its state has seen
        self._state: Any = None
        self._capacity = 0
        self._chance, self._each = self.FIRST, cost or 0.0
        self._said: tuple[int, list[int]] = 0, []  # tokens before what was proposed last, and that

    def begin(self, model: nn.Module) -> None:
        self._chance, self._said = self.FIRST, (0, [])
        self._each = _bytes(self.network) / _bytes(model) if self.cost is None else self.cost

    @torch.inference_mode()
    def propose(
        self, ids: Sequence[int], costs: Sequence[float], sampling: Sampling, random: np.random.Generator
    ) -> tuple[list[int], Float[Tensor, "γ V"] | None]:
        ids = list(ids)
        self._judge(ids)
        count = worth(lambda _: self._chance, costs, self._each)
        if self.context is not None:
            count = min(count, self.context - len(ids))
        if count < 1:
            return [], None
        self._go_to(ids, count)
        written, said = [], []
        for unread in range(count):
            behind = self._ask(ids[len(self._read) :] if not unread else written[-1:])
            weights = probabilities(behind[:, : self.vocab], sampling)
            said.append(F.pad(weights[0], (0, self.vocab - weights.shape[1])))
            written.append(int(drawn(weights, torch.tensor([random.random()], device=weights.device))))
        self._said = len(ids), written
        return written, torch.stack(said)

    def _judge(self, ids: list[int]) -> None:
        """Whether what was proposed last stayed; where nothing was, hope grows slowly, so that it is tried again."""
        before, written = self._said
        self._said = 0, []
        if not written:
            self._chance += RATE / 10 * (1 - self._chance)
        for said, came in zip(written, ids[before:], strict=False):
            self._chance += RATE * ((said == came) - self._chance)
            if said != came:
                return

    def _go_to(self, ids: list[int], count: int) -> None:
        """Take back what was proposed in vain; begin anew where it is another text, or one that has grown too long."""
        same = min(len(self._read), len(ids) - 1)
        while same and self._read[same - 1] != ids[same - 1]:
            same -= 1
        if not same or len(ids) + count > self._capacity or len(self._read) - same > MOST:
            self._capacity = 2 * (len(ids) + count) + MOST
            self._state, self._read = self.network.init_state(1, self._capacity), []
            self._state.reserve(MOST)
        elif len(self._read) > same:
            self._state.forget(len(self._read) - same)
            del self._read[same:]

    def _ask(self, unread: list[int]) -> Float[Tensor, "1 V"]:
        tokens = torch.tensor([unread], device=device_of(self.network))
        seen, self._read = self._read, []  # a pass that is broken off leaves a state that nothing is known about
        logits = self.network.head(read(self.network, tokens, None, self._state))
        self._read = seen + unread
        return logits


def _bytes(network: nn.Module) -> int:
    """What a pass reads of weights."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def shallow(network: nn.Module, depth: int) -> nn.Module:
    """The same model without its upper layers, parameters shared: a draft that needs no memory of its own.

    It is of use for models that were trained to be left early (arXiv 2404.16710). Raises UserError for a depth that
    leaves nothing out.
    """
    blocks = getattr(network, "blocks", ())
    if not 1 <= depth < len(blocks):
        raise UserError(f"a draft of the model's own first layers takes 1 to {len(blocks) - 1} of them, not {depth}")
    twin = copy.copy(network)
    twin._modules = {**network._modules, "blocks": nn.ModuleList(blocks[:depth])}
    return twin


def takes_back(network: nn.Module) -> None:
    """Raises UserError for a model that cannot be made to forget tokens that were read in vain."""
    state = network.init_state(1, 1)
    if not hasattr(state, "reserve"):
        raise UserError("this model remembers texts as a whole and cannot take tokens back, as drafts need it")
    state.reserve(1)


class Speculation:
    """A draft at work, and how often it was right: of `proposed` tokens `kept` stayed, in `rounds` of the model."""

    def __init__(self, draft: Draft):
        self.draft = draft
        self.rounds = self.proposed = self.kept = 0

    def serves(self, rows: Sequence[Continuation], sampling: Sampling) -> bool:
        """Whether it is of use: one text, of which what may follow depends on the model alone."""
        free = sampling.repetition_penalty == 1.0 and not sampling.no_repeat_ngram_size and not sampling.min_new_tokens
        return len(rows) == 1 and free and sampling.beams == 1

    def generate(self, model: nn.Module, row: Continuation, sampling: Sampling) -> Iterator[None]:
        """As engine.generate with one row; each step adds a token at least, and all that are kept."""
        for proposed, kept in generate(model, row, sampling, self.draft):
            self.rounds, self.proposed, self.kept = self.rounds + 1, self.proposed + proposed, self.kept + kept
            yield


@torch.inference_mode()
def generate(model: nn.Module, row: Continuation, sampling: Sampling, draft: Draft) -> Iterator[tuple[int, int]]:
    """Continue one row; how many tokens were proposed and how many of them were kept, round by round."""
    ids, cost = list(row.prompt), costs(device_of(model))
    draft.begin(model)
    state = model.init_state(1, len(ids) + row.budget + MOST)
    state.reserve(MOST)
    device = device_of(model)
    features = read(model, torch.tensor([ids], device=device), None, state)[:, None]
    proposed: list[int] = []
    said: Tensor | None = None
    while True:
        logits = model.head(features)[0]  # [γ + 1, V]
        kept, token = verify(
            probabilities(logits, sampling)[None],
            None if said is None else said[None],
            torch.tensor([proposed], dtype=torch.long, device=device),
            torch.from_numpy(row.random.random((1, len(proposed) + 1), np.float32)).to(device),
        )
        for place, chosen in enumerate([*proposed[: int(kept)], int(token)]):
            if row.finish is None:
                if row.top is not None:
                    row.note(chosen, logits[place])
                row.push(chosen)
                ids.append(chosen)
        yield len(proposed), int(kept)
        if row.finish is not None:
            return
        if len(proposed) > int(kept):
            state.forget(len(proposed) - int(kept))
        room = row.budget - len(row.ids) - 1
        proposed, said = draft.propose(ids, cost[: room + 1], sampling, row.random) if room > 0 else ([], None)
        features = model.features(torch.tensor([[ids[-1], *proposed]], device=device), state=state)


def verify(
    p: Float[Tensor, "N γ+1 V"],
    q: Float[Tensor, "N γ V"] | None,
    proposed: Int[Tensor, "N γ"],
    uniform: Float[Tensor, "N γ+1"],
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """How many of the proposed tokens stay, and the token that follows them (arXiv 2211.17192, algorithm 1).

    p, q: what the model and the draft give to each place; q None: the draft was sure. uniform: numbers in [0, 1).
    """
    count = proposed.shape[1]
    at = proposed[..., None]
    ratio = p[:, :count].gather(2, at)[..., 0]
    if q is not None:
        ratio = ratio / q.gather(2, at)[..., 0]
    kept = (uniform[:, :count] < ratio).long().cumprod(1).sum(1)
    own = rest = p[torch.arange(len(p), device=p.device), kept]  # [N, V]
    if count:
        failed, place = (kept < count)[:, None], kept.clamp(max=count - 1)[:, None, None]
        if q is not None:
            less = q.gather(1, place.expand(-1, -1, q.shape[2]))[:, 0]
            less = (rest - less).clamp(min=0)
        else:
            less = rest.scatter(1, proposed.gather(1, place[:, :, 0]), 0.0)
        more = less.sum(1, keepdim=True) > 0  # else p and q differ by rounding only
        rest = torch.where(failed & more, less, own)
    return kept, drawn(rest, uniform[:, count])


def drawn(weights: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """A token of each row, with probabilities that its weights are proportional to: u in [0, 1) picks it."""
    reached = weights.cumsum(1)
    below = torch.nextafter(reached[:, -1:], torch.zeros_like(reached[:, -1:]))  # rounding up would pick weight 0
    wanted = torch.minimum(uniform.to(reached.dtype)[:, None] * reached[:, -1:], below)
    return torch.searchsorted(reached, wanted, right=True)[:, 0]
