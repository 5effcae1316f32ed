"""Mixers without attention: S4D and S4, which filter each channel by a state space and then mix the channels."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.nn.attention import Layout
from onefold.nn.linear import Linear
from onefold.nn.states.hippo import Diagonal
from onefold.nn.states.long_conv import convolve, reach
from onefold.nn.states.state_spaces import DiagonalStateSpace, LowRankStateSpace, Recurrence, StateSpace


class _StateSpaceConfig(Config):
    states: int = Field(default=64, ge=2)  # of each channel; its eigenvalues come in pairs, so an even number
    dt: tuple[float, float] = (1e-3, 1e-1)  # how far apart tokens are, at first: drawn in between for each channel
    causal: bool = True  # False: a second kernel looks ahead
    dropout: float = Field(default=0.0, ge=0, lt=1)  # before channels are mixed

    @field_validator("states")
    @classmethod
    def _even(cls, states: int) -> int:
        if states % 2:
            raise ValueError(f"states ({states}) come in conjugate pairs: an even number")
        return states

    @model_validator(mode="after")
    def _ordered(self) -> "_StateSpaceConfig":
        if not 0 < self.dt[0] <= self.dt[1]:
            raise ValueError(f"dt must be two rising positive numbers, not {list(self.dt)}")
        return self

    @property
    def endless(self) -> bool:
        """Texts may go on beyond the length trained on: what was read is remembered, not looked at."""
        return True


class S4DConfig(_StateSpaceConfig):
    """Diagonal state spaces (Gu et al. 2022, arXiv 2206.11893)."""

    kind: Literal["s4d"] = "s4d"
    init: Diagonal = "lin"

    def build(self, width: int) -> "SSM":
        return SSM(self, width, DiagonalStateSpace(width, self.states, self.dt, 1 if self.causal else 2, self.init))


class S4Config(_StateSpaceConfig):
    """Structured state spaces, diagonal plus low rank (Gu et al. 2021, arXiv 2111.00396).

    The reference: kernels are computed in double precision, prompts are read token by token.
    """

    kind: Literal["s4"] = "s4"

    def build(self, width: int) -> "SSM":
        return SSM(self, width, LowRankStateSpace(width, self.states, self.dt, 1 if self.causal else 2))


class SSM(nn.Module):
    """GLU(out(GELU(K ∗ x))): each channel by itself through its kernel, then all of them through one matrix."""

    def __init__(self, config: S4DConfig | S4Config, width: int, kernel: StateSpace):
        super().__init__()
        self.config, self.kernel = config, kernel
        self.out = Linear(width, 2 * width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: Recurrence | None = None
    ) -> Float[Tensor, "B T D"]:
        if layout.prefix is not None:
            raise UserError("a state space reads in one direction: no prefix of a text can be seen whole")
        if state is not None and x.shape[1] == 1 and layout.pad is None:  # no product in it that autocast would round
            return self._mixed(self.kernel.step(x[:, 0], state), x.dtype)[:, None]
        with _exact(x):
            y = self.filtered(x, layout, state)
        return self._mixed(y, x.dtype)

    def _mixed(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        y = F.gelu(y if y.dtype is dtype else y.to(dtype))
        return F.glu(self.out(self.dropout(y) if self.training else y), dim=-1)

    def filtered(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: Recurrence | None = None
    ) -> Float[Tensor, "B T D"]:
        """What the state spaces say, before channels meet."""
        T = x.shape[1]
        if layout.pad is not None:  # zeros leave an empty state as it is
            if "read" not in layout.memo:
                columns = torch.arange(layout.start, layout.start + T, device=x.device)
                layout.memo["read"] = (columns >= layout.pad[:, None])[..., None]
            x = x * layout.memo["read"]
        if state is None:
            return self._whole(x, layout)
        return self.kernel.step(x[:, 0], state)[:, None] if T == 1 else self.kernel.read(x, state)

    @torch.compiler.disable  # it has no code for complex numbers and transforms, nor for how texts happen to lie
    def _whole(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        kernels = self.kernel(reach(x.shape[1], layout.segments, layout.memo))
        return convolve(x, kernels, layout.segments, layout.memo)

    def init_state(self, batch: int, capacity: int, device=None, dtype=None) -> Recurrence:
        """An empty state for `batch` rows of any length. Raises UserError for one that looks ahead."""
        if not self.config.causal:
            raise UserError("this layer looks ahead (causal=false): it reads texts whole and cannot write them")
        weight = self.out.weight
        return self.kernel.init_state(batch, device or weight.device, dtype or weight.dtype)


def _exact(x: Tensor) -> AbstractContextManager:
    """Without autocast: powers of rounded numbers would be other numbers."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
