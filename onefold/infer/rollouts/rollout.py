"""Training data that the model being trained writes itself: phase after phase, it answers prompts and learns from that.

    prompts → answers of the policy → rewards → what the objective makes of them → mini-batches, several times over

Nothing is made ahead: a phase is written with the weights that training has reached by then. What a killed run had
written and not yet learned from is part of its state, so that it goes on with the very same bits. Of several processes
each writes and looks at its share of a phase, and judges all of it, so that every one knows the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from onefold.adapt.surgery import switch_of
from onefold.core import dist
from onefold.core.batch import RolloutBatch
from onefold.core.errors import UserError
from onefold.data.text.chat.answers import Said
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import budget, evaluating, generate
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import behind
from onefold.infer.rollouts.rewards import Answer
from onefold.infer.writer import take_in
from onefold.objectives.log_probs import token_log_probs

AT_ONCE = 4  # times as many rows as are learned from: writing keeps no activations
Memory = dict[str, Tensor | float]  # what a phase leaves to the next one


@dataclass(frozen=True)
class Prompt:
    """What is asked, as the model reads it, and what is right to say ("": nobody knows)."""

    ids: list[int]
    said: Said
    right: str
    risky: bool = False


@dataclass(frozen=True)
class Policy:
    """The model that learns and all that its answers go through.

    objective: as built. Its `look(model, batch)` adds what it will want to know of the policy as it was when it wrote;
    its `judge(rollouts, memory)` gets all answers of a phase together.
    """

    model: nn.Module
    objective: Any
    score: Callable[[Sequence[Answer]], Float[Tensor, " N"]]
    device: torch.device
    reference: Callable[[], AbstractContextManager[nn.Module]] | None = None  # what it is to stay near
    bf16: bool = False  # computes in bfloat16 when it judges, as it does when it learns
    rows: int = 16  # read together
    whole: Callable[[], AbstractContextManager[None]] = nullcontext  # inside of it the model needs no other process

    def write(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        context: int,
        tokenizer: Tokenizer,
        seeds: Sequence[tuple[int, ...]],
    ) -> list[Continuation]:
        """An answer to each, many written together. What is drawn for one depends on its own seed only."""
        found = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            stream = tokenizer.stream() if not isinstance(prompt.said, str) else behind(tokenizer, prompt.ids)
            room = budget(prompt.ids, sampling.max_new_tokens, context)
            found.append(Continuation(prompt.ids, room, tokenizer.stops, (), stream, np.random.default_rng(seed)))
        with (
            self.whole(),
            evaluating(self.model),
            torch.compiler.set_stance("force_eager"),
            taken_in(self.model, found),
        ):
            model = for_decoding(self.model) if dist.world() == 1 else self.model  # FSDP's modules cannot be copied
            together, even = AT_ONCE * self.rows, sorted(found, key=lambda row: len(row.prompt))  # little is padded
            for start in range(0, len(even), together):
                for _ in generate(model, even[start : start + together], sampling):
                    pass
        return found

    def judged(self, rollouts: RolloutBatch, memory: Memory) -> tuple[RolloutBatch, Memory]:
        """With what the objective needs to learn from them, and what it wants to remember in the next phase."""
        looked = self._each(self.model, self.compared(rollouts.take(dist.share(rollouts.rows))), self.objective.look)
        found = {f.name: getattr(looked, f.name) for f in fields(looked) if getattr(rollouts, f.name) is None}
        shared = {name: of_all(own, self.device) for name, own in found.items() if own is not None}
        return self.objective.judge(replace(rollouts, **shared), memory)

    def compared(self, rollouts: RolloutBatch) -> RolloutBatch:
        """With the log-probabilities of the reference, where there is one."""
        if self.reference is None:
            return rollouts

        def said(model: nn.Module, part: RolloutBatch) -> RolloutBatch:
            return replace(part, reference=token_log_probs(model, model.features(*part.inputs()), part))

        with self.reference() as model:
            return self._each(model, rollouts, said)

    def _each(
        self, model: nn.Module, rollouts: RolloutBatch, look: Callable[[nn.Module, RolloutBatch], RolloutBatch]
    ) -> RolloutBatch:
        with (
            self.whole(),
            evaluating(model),
            torch.compiler.set_stance("force_eager"),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            return joined([look(model, part.to(self.device)).to("cpu") for part in rollouts.split(self.rows)])


@contextmanager
def taken_in(model: nn.Module, rows: Sequence[Continuation]) -> Iterator[None]:
    """The only adapter a part of the weights while these rows are written, where that pays; then beside them again."""
    if dist.world() > 1:  # FSDP's weights belong to all processes
        yield
        return
    try:
        take_in(model, rows)
        yield
    finally:
        switch_of(model).unmerge()


def assemble(
    prompts: Sequence[Prompt],
    written: Sequence[list[int]],
    groups: Sequence[int],
    rewards: Tensor,
    pad: int,
    temperature: float,
    prefix: bool,
) -> RolloutBatch:
    """Prompts and the ids that were written behind them as a batch."""
    texts = [prompt.ids + ids for prompt, ids in zip(prompts, written)]
    starts = torch.tensor([len(prompt.ids) for prompt in prompts])[:, None]
    lengths = torch.tensor([len(ids) for ids in texts])[:, None]
    whole = torch.full((len(texts), int(lengths.max())), pad)
    for row, ids in zip(whole, texts):
        row[: len(ids)] = torch.tensor(ids)
    after = torch.arange(1, whole.shape[1])  # the place of each target
    return RolloutBatch(
        tokens=whole[:, :-1].contiguous(),
        targets=whole[:, 1:].contiguous(),
        weights=((after >= starts) & (after < lengths)).float(),
        prefix=after <= starts if prefix else None,
        rewards=rewards,
        groups=torch.tensor(groups),
        temperature=temperature,
    )


def of_all(rows: Tensor, device: torch.device) -> Tensor:
    """The rows of all processes, in their order. device: where these exchange what they have."""
    return dist.gather_rows(rows.to(device))[0].to(rows.device)


def joined(parts: Sequence[RolloutBatch]) -> RolloutBatch:
    """One batch of the rows of several that are equally wide."""
    held = {f.name: [getattr(part, f.name) for part in parts] for f in fields(parts[0])}
    return replace(parts[0], **{name: torch.cat(some) for name, some in held.items() if isinstance(some[0], Tensor)})


def wrote(row: Continuation) -> list[int]:
    """The ids of an answer, its end included."""
    return row.ids if row.end is None else [*row.ids, row.end]


KEPT = "memory."  # what names in a state begin with that belong to the memory


class Source(Protocol):
    """Where phases come from."""

    def phase(self, number: int, seed: int, memory: Memory) -> tuple[RolloutBatch, Memory]: ...


class Rollouts:
    """Endless mini-batches of `rows`: each phase goes through what was written `epochs` times, in another order.

    `state()` has what a phase left to the next one and the answers of a phase that is not over, as tensors.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        rows: int,
        epochs: int,
        seed: int,
        state: dict[str, Any] | None,
        rank: int = 0,
        world: int = 1,
    ):
        """size: answers of a phase. Of each mini-batch, process `rank` of `world` gets its part."""
        if size % rows:
            raise UserError(
                f"a phase has {size} answers to learn from, no multiple of trainer.batch={rows}: change "
                "data.prompts, data.samples or trainer.batch"
            )
        self._source, self._rows, self._seed, self._steps = source, rows, seed, (size // rows, epochs)
        self._rank, self._world = rank, world
        state = state or {"phase": 0, "seen": 0}
        self._phase, self._seen = state["phase"], state["seen"]
        self._memory = {name.removeprefix(KEPT): v for name, v in state.items() if name.startswith(KEPT)}
        tensors = {n: v for n, v in state.items() if isinstance(v, Tensor) and not n.startswith(KEPT)}
        more = {"temperature": state["temperature"]} if tensors else {}
        self._written = RolloutBatch(**tensors, **more) if tensors else None

    def __iter__(self) -> Iterator[RolloutBatch]:
        return self

    def __next__(self) -> RolloutBatch:
        if self._written is None:
            self._written, self._memory = self._source.phase(self._phase, self._seed, self._memory)
        batches, epochs = self._steps
        epoch, place = divmod(self._seen, batches)
        order = np.random.default_rng((self._seed, self._phase, epoch)).permutation(self._written.rows)
        begin, end = (place * self._rows + self._rows * i // self._world for i in (self._rank, self._rank + 1))
        rows = torch.from_numpy(order[begin:end])
        batch = self._written.take(rows).narrow()
        self._seen += 1
        if self._seen == batches * epochs:
            self._phase, self._seen, self._written = self._phase + 1, 0, None
        return batch

    def state(self) -> dict[str, Any]:
        """{"phase", "seen"}, the memory and, within a phase, what was written in it."""
        told: dict[str, Any] = {"phase": self._phase, "seen": self._seen}
        told |= {KEPT + name: value for name, value in self._memory.items()}
        if self._written is None:
            return told
        held = {f.name: getattr(self._written, f.name) for f in fields(self._written)}
        # Copies, since files want each tensor once, and an objective may have given one two names.
        tensors = {name: value.clone() for name, value in held.items() if isinstance(value, Tensor)}
        return told | {"temperature": self._written.temperature} | tensors

    def close(self) -> None:
        """Nothing runs beside it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        pass
