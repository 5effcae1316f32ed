"""Learning-rate schedules: pure functions from a step to a multiplier of the peak learning rate.

Step s (0 is the first) of `steps` has warm-up multiplier (s + 1) / warmup while s < warmup. What follows depends on
the progress p = (s - warmup) / (steps - warmup), so the step after the last would have p = 1: no step is wasted on a
learning rate of zero.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from onefold.core.config import Config

Share = Annotated[float, Field(ge=0, le=1)]


class _Warmed(Config):
    """What all schedules share: a linear warm-up. `warmup` counts steps; below 1 it is a share of the run."""

    warmup: Annotated[float, Field(ge=0)] = 0.02

    def warmup_steps(self, steps: int) -> int:
        return min(steps, round(self.warmup if self.warmup >= 1 else self.warmup * steps))

    def multiplier(self, step: int, steps: int) -> float:
        """What to multiply the peak learning rate by in step `step` (from 0) of `steps`."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.shape(min(1.0, (step - warmup) / max(1, steps - warmup)))

    def shape(self, progress: float) -> float:
        raise NotImplementedError


class Constant(_Warmed):
    """1 after the warm-up."""

    kind: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:
        return 1.0


class Linear(_Warmed):
    """A straight line from 1 to `final`."""

    kind: Literal["linear"] = "linear"
    final: Share = 0.0

    def shape(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class Cosine(_Warmed):
    """Half a cosine from 1 to `final` (arXiv 1608.03983, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    final: Share = 0.1

    def shape(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class WSD(_Warmed):
    """Warm-up, stable, decay (arXiv 2404.06395): 1, then over the last `cooldown` share of what follows the warm-up
    down to `final`.

    `curve` "sqrt" is 1 - sqrt(x), which arXiv 2405.18392 found to beat the straight line.
    """

    kind: Literal["wsd"] = "wsd"
    cooldown: Share = 0.2
    final: Share = 0.0
    curve: Literal["linear", "sqrt"] = "linear"

    def shape(self, progress: float) -> float:
        if progress <= 1 - self.cooldown:
            return 1.0
        x = (progress - (1 - self.cooldown)) / self.cooldown
        return self.final + (1 - self.final) * (1 - (math.sqrt(x) if self.curve == "sqrt" else x))


class InverseSqrt(Config):
    """√(warmup / (s + 1)) after the warm-up, however many steps there are: the first Transformer's schedule.

    With t = s + 1 and the peak (width · warmup)^-0.5 the learning rate is width^-0.5 · min(t^-0.5, t · warmup^-1.5)
    (arXiv 1706.03762, equation 3).
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Annotated[int, Field(ge=1)] = 4000  # steps
    flat: bool = False  # 1 in these steps instead of a rise (T5)

    def multiplier(self, step: int, steps: int) -> float:
        """As that of all schedules."""
        rise = 1.0 if self.flat else (step + 1) / self.warmup
        return min(rise, (self.warmup / (step + 1)) ** 0.5)


class SlantedTriangular(Config):
    """A short straight rise to 1 and a long straight fall (ULMFiT, arXiv 1801.06146, equation 3).

    The first step of `steps` has 1 / ratio, the step ⌊cut · steps⌋ has 1, the one after the last 1 / ratio again.
    """

    kind: Literal["slanted_triangular"] = "slanted_triangular"
    cut: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the steps that rise
    ratio: Annotated[float, Field(ge=1)] = 32.0  # of the highest to the lowest

    def multiplier(self, step: int, steps: int) -> float:
        """As that of all schedules."""
        top = max(1, int(self.cut * steps))
        share = step / top if step < top else 1 - (step - top) / max(1, steps - top)
        return (1 + max(0.0, share) * (self.ratio - 1)) / self.ratio


Schedule = Constant | Linear | Cosine | WSD | InverseSqrt | SlantedTriangular
