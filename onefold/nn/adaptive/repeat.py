"""The same blocks again and again, for each token as often as it needs (arXiv 1807.03819, 1603.08983).

A Universal Transformer's depth is a loop: in step t the same weights read what step t - 1 made, to which the place and
the time were added. With adaptive computation time (ACT) a token says after each step how sure it is, p; as soon as its
p add up to 1 - ε it *halts*, and its result is the mean of its states, weighed by p, of which the last gets the
*remainder* R = 1 - Σ p. A token that has halted is copied to the later steps, where others go on seeing it. N steps and
R, the ponder cost, are added to the loss; only R has a gradient.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.nn.adaptive.scalar import Scalar
from onefold.nn.attention import Layout
from onefold.nn.own_losses import Told
from onefold.nn.position import Sinusoidal


class HaltingConfig(Config):
    """ACT. `bias`: at first p = σ(bias), so that a token takes two steps with 1 and twelve with -2.4."""

    ponder: Annotated[float, Field(ge=0)] = 0.01  # weight of the ponder cost, steps per token
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.01
    bias: float = 1.0


class RepeatConfig(Config):
    """All blocks, `steps` times in a row; with `halting` at most.

    positions: sines and cosines of a token's place are added in each step, beside those of the step (equations 6 and 7
    of arXiv 1807.03819); false where attention has positions of its own.
    """

    steps: Annotated[int, Field(ge=1)]
    positions: bool = True
    halting: HaltingConfig | None = HaltingConfig()

    def build(self, width: int) -> "Repeat":
        return Repeat(self, width)


class Repeat(nn.Module):
    """Applies blocks that it is given. While somebody listens (own_losses.py) it tells the ponder cost and the steps
    that a token takes."""

    def __init__(self, config: RepeatConfig, width: int):
        super().__init__()
        self.steps, self.positions, self.config = config.steps, config.positions, config.halting
        self.signal = Sinusoidal(width, halves=True)
        self.halt = config.halting and Scalar(width, bias=config.halting.bias)
        self.told: list[Told] | None = None

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, blocks: nn.ModuleList, state: Any = None
    ) -> Float[Tensor, "B T D"]:
        """state: a DecoderState, with a cache for each block of each step."""
        if self.halt is None:
            for step in range(self.steps):
                x = self._at(x, step, layout)
                for block, cache in zip(blocks, self._caches(step, blocks, state), strict=True):
                    x = block(x, layout, *cache)
            return x
        left = torch.ones(x.shape[:2], device=x.device)  # 1 - Σ p: of one that has halted, its remainder
        running = torch.ones_like(left, dtype=torch.bool)
        taken, mean = torch.zeros_like(left), torch.zeros_like(x, dtype=torch.float32)
        for step in range(self.steps):
            if state is not None and not running.any():  # processes that share weights would wait for each other
                self._remember(x, step, layout, blocks, state)
                break
            made = self._at(x, step, layout)
            for block, cache in zip(blocks, self._caches(step, blocks, state), strict=True):
                made = torch.where(running[..., None], block(made, layout, *cache), made)
            x = torch.where(running[..., None], made, x)
            p = self.halt(x).sigmoid()
            halts = running & (left - p <= self.config.epsilon)
            if step == self.steps - 1:
                halts = running
            mean = mean + torch.where(running, torch.where(halts, left, p), 0.0)[..., None] * x
            taken, running = taken + running, running & ~halts
            left = torch.where(running, left - p, left)
        if self.told is not None:
            steps = taken.mean()
            losses = {"ponder": (steps + left.mean(), self.config.ponder)} if self.config.ponder else {}
            self.told.append(Told(taken.numel(), losses if torch.is_grad_enabled() else {}, {"steps_taken": steps}))
        return mean.to(x.dtype)

    def _at(self, x: Tensor, step: int, layout: Layout) -> Tensor:
        """What a step reads."""
        signal = self.signal(torch.full((1, 1), step + 1, device=x.device))
        if self.positions:
            if self not in layout.memo:
                layout.memo[self] = self.signal(layout.positions)
            signal = signal + layout.memo[self]
        return x + signal.to(x.dtype)

    def _caches(self, step: int, blocks: nn.ModuleList, state: Any) -> Iterator[tuple[Any, ...]]:
        """What each block is given of a state."""
        for i in range(len(blocks)):
            yield () if state is None else (state.layers[step * len(blocks) + i], state.memory[i])

    def _remember(self, x: Tensor, first: int, layout: Layout, blocks: nn.ModuleList, state: Any) -> None:
        """All have halted: leave their keys and values in the caches of the steps that are left, for later tokens."""
        for step in range(first, self.steps):
            seen = self._at(x, step, layout)
            for block, (cache, _) in zip(blocks, self._caches(step, blocks, state), strict=True):
                block.remember(seen, layout, cache)
