"""The generate loop: read the prompts in chunks, then a token a step for every row that has not ended.

A model takes part with `init_state`, `features` and `head`; what its state is (cache, ring, recurrence) is its own
affair. Rows of different length are padded on the left; a row that ends leaves the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.padding import padded
from onefold.infer.generation.sampling import Sampler, Sampling
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.nn.position import LearnedPositionConfig

CHUNK = 1024  # columns of a prompt read at once: bounds memory, and still fills the machine


@torch.inference_mode()
def generate(model: nn.Module, rows: Sequence[Continuation], sampling: Sampling) -> Iterator[None]:
    """Continue all rows together; after each step every row that had not ended has one more token.

    The rows are the result. Stop early by closing the iterator. A prompt that several rows have is read once.
    """
    if not rows:
        return
    live, places = list(rows), {}
    reads = [places.setdefault(tuple(row.prompt) if row.source is None else row, len(places)) for row in live]
    tokens, positions = left_pad([live[reads.index(place)].prompt for place in range(len(places))], device_of(model))
    steps = max(row.budget for row in live)
    state = model.init_state(len(places), tokens.shape[1] + steps - 1)
    logits = model.head(read(model, tokens, positions, state))
    if len(places) < len(live):
        index = torch.tensor(reads, device=logits.device)
        logits = logits[index]
        state.reorder(index)
    prompts, randoms = [row.prompt for row in live], [row.random for row in live]
    ends = [row.ends for row in live]
    sampler = Sampler(prompts, randoms, sampling, steps, logits.shape[1], logits.device, ends)
    while True:
        chosen = sampler(logits)
        for i, (row, token) in enumerate(zip(live, chosen.tolist())):
            if row.top is not None:
                row.note(token, logits[i])
            row.push(token)
        yield
        kept = [i for i, row in enumerate(live) if row.finish is None]
        if not kept:
            return
        if len(kept) < len(live):
            index = torch.tensor(kept, device=chosen.device)
            live, chosen = [live[i] for i in kept], chosen[index]
            state.reorder(index)
            sampler.keep(index)
        logits = model.head(model.features(chosen[:, None], state=state)[:, -1])


def read(
    model: nn.Module, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None, state: Any, chunk: int = CHUNK
) -> Float[Tensor, "B D"]:
    """Put the prompts into the state, a chunk of columns at a time; the features of the last column.

    Prompts that are seen whole by each of their tokens are one chunk. A model for which they are something else than
    what it has written has a method `prompt` beside its `features`.
    """
    features, put = None, getattr(model, "prompt", model.features)
    chunk = tokens.shape[1] if getattr(state, "prefix", False) else chunk
    for start in range(0, tokens.shape[1], chunk):
        part = slice(start, start + chunk)
        features = put(tokens[:, part], None if positions is None else positions[:, part], state=state)
    return features[:, -1]


def left_pad(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"] | None]:
    """Prompts as one matrix, ending in the last column; positions are -1 on padding, None when there is none."""
    if min(len(ids) for ids in prompts) == 0:
        raise UserError("a prompt has no tokens; begin with at least one")
    tokens, lengths = padded(prompts, left=True, device=device), torch.tensor([len(ids) for ids in prompts])
    before = tokens.shape[1] - lengths.to(device)[:, None]
    if len(set(lengths.tolist())) == 1:
        return tokens, None
    return tokens, (torch.arange(tokens.shape[1], device=device) - before).clamp(min=-1)


def reach(config: Config) -> int | None:
    """How many tokens a text may have, prompt included; None: any number.

    Learned positions end with their table, and attention to everything means little beyond the context that it was
    trained on. A model whose layers all have a window, or ALiBi's penalty on distance, never looks further back than
    it has learned to, so its texts have no end; nor have those of state spaces and of a recurrence.
    """
    if isinstance(config, RecurrentConfig):
        return None
    context = getattr(config, "context", None)
    if context is None or isinstance(config.embed.position, LearnedPositionConfig):
        return context
    endless = all(getattr(block.mixer, "endless", False) for block in config.blocks())
    return None if endless and config.embed.position is None else context


def budget(prompt: Sequence[int], wanted: int, limit: int | None) -> int:
    """How many tokens may follow a prompt where a text is at most `limit` long; the last one is never read itself."""
    if limit is None:
        return wanted
    if len(prompt) > limit:
        raise UserError(f"the prompt has {len(prompt)} tokens, the model's context is {limit}; shorten the prompt")
    return min(wanted, limit + 1 - len(prompt))


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; training mode comes back afterwards."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
