"""Steps that would do harm are not taken: the rule."""

from dataclasses import dataclass, field
from math import fsum, isfinite, sqrt
from typing import Annotated

from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError


class SkipConfig(Config):
    """Skip an update whose loss or gradient norm is not finite, or is a spike.

    A spike exceeds the mean of the last `window` values by `sigmas` standard deviations, and by a tenth of the mean
    at least, so that a loss that hardly moves any more has no spikes. It takes half a window of values to tell.
    """

    window: Annotated[int, Field(ge=2)] = 128
    sigmas: Annotated[float, Field(gt=0)] = 6.0  # inf: only what is not finite is skipped
    patience: Annotated[int, Field(ge=1)] = 50  # skipped steps in a row after which the run gives up


@dataclass
class SpikeRule:
    """Remembers the last losses and norms (lists that a checkpoint keeps) and says which step is one to skip."""

    config: SkipConfig
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """Why the step with this loss and gradient norm should be skipped; None when it should not.

        Errors: UserError when too many in a row should.
        """
        reason = self._reason(loss, norm)
        self.in_a_row = self.in_a_row + 1 if reason else 0
        if self.in_a_row >= self.config.patience:
            raise UserError(
                f"{self.in_a_row} steps in a row were of no use ({reason}): try a lower optimizer.lr or a longer "
                "warm-up. What was saved before is still there"
            )
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        if not isfinite(loss) or not isfinite(norm):
            return f"the {'gradient' if isfinite(loss) else 'loss'} is not finite"
        spike = None
        for name, value, past in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            if len(past) >= self.config.window // 2:
                mean = fsum(past) / len(past)
                deviation = sqrt(fsum((x - mean) ** 2 for x in past) / len(past))
                if value > mean + max(self.config.sigmas * deviation, abs(mean) / 10):
                    spike = spike or f"a spike: {name} {value:.4g}, lately {mean:.4g}"
            past.append(value)  # spikes too: a level that stays up is no spike for long
            del past[: -self.config.window]
        return spike
