"""Linear state spaces h' = A h + B u, y = C h + D u, one for each channel, read in two ways that agree.

As a *kernel*, y = K ∗ u, which trains in parallel; as a *recurrence*, whose state is all that is left of the text, so
that a step costs the same at any length. Eigenvalues come in conjugate pairs, of which one half is kept.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onefold.nn.states.hippo import Diagonal, diagonal, legs
from onefold.nn.states.long_conv import convolve

ALIASED = 1e-10  # how much of a DPLR kernel's part beyond twice its length is added to it
CHUNK = 2**22  # complex numbers of a Cauchy matrix at a time


@dataclass
class Recurrence:
    """What a layer remembers of each row: the states of all channels. Its size does not grow with what was read."""

    h: Complex[Tensor, "B D N"]  # one half of the conjugate pairs
    discrete: tuple[Tensor, ...] | None = None  # what a step multiplies with, computed once

    @property
    def bytes(self) -> int:
        return self.h.nbytes

    @property
    def rows(self) -> int:
        return len(self.h)

    @property
    def device(self) -> torch.device:
        return self.h.device

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was (beams)."""
        self.h = self.h[rows]


class StateSpace(nn.Module, ABC):
    """The parameters of a layer's state spaces, named and laid out as S4's authors do, complex numbers as pairs.

    directions: 2 for a kernel that looks ahead as well; both share all but C.

    Powers of rounded numbers would be other numbers: parameters stay in `least`, whatever the model is turned into.
    """

    least = torch.float32

    def __init__(self, width: int, states: int, dt: tuple[float, float], directions: int):
        super().__init__()
        self.states, self.range = states, dt
        half = states // 2
        self.log_dt = nn.Parameter(torch.empty(width))
        self.log_A_real = nn.Parameter(torch.empty(width, half))  # of -Re A, which stays negative
        self.A_imag = nn.Parameter(torch.empty(width, half))
        self.C = nn.Parameter(torch.empty(directions, width, half, 2))
        self.D = nn.Parameter(torch.empty(width))

    def _apply(self, fn: Any, recurse: bool = True) -> "StateSpace":
        def unrounded(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            dtype = torch.promote_types(made.dtype, self.least)
            return made if made.dtype == dtype else tensor.to(made.device, dtype)

        return super()._apply(unrounded, recurse)

    def _begin(self, eigenvalues: Complex[Tensor, " N"]) -> None:
        """Steps log-uniform in their range; C and D random (S4D, arXiv 2206.11893, section 5)."""
        self.log_dt.uniform_(*(math.log(bound) for bound in self.range))
        self.log_A_real.copy_((-eigenvalues.real).log().expand(self.log_A_real.shape))
        self.A_imag.copy_(eigenvalues.imag.expand(self.A_imag.shape))
        self.C.normal_(std=0.5**0.5)  # of complex numbers of variance 1
        self.D.normal_()

    def parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Δ [D, 1], and complex A [D, N] and C [directions, D, N], in a precision that does not round them."""
        dtype = torch.promote_types(dtype, self.log_dt.dtype)
        A = torch.complex(-self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype))
        return self.log_dt.to(dtype).exp()[:, None], A, torch.view_as_complex(self.C.to(dtype))

    def init_state(self, batch: int, device: Any, dtype: torch.dtype) -> Recurrence:
        dtype = torch.promote_types(dtype, torch.float32).to_complex()
        return Recurrence(torch.zeros(batch, *self.A_imag.shape, dtype=dtype, device=device))

    def _with_skip(self, kernels: Float[Tensor, "directions D L"]) -> Float[Tensor, "directions D L"]:
        """With D u, which is one more number at lag 0."""
        skip = F.pad(self.D[None, :, None], (0, kernels.shape[2] - 1, 0, 0, 0, len(kernels) - 1))
        return kernels + skip.to(kernels.dtype)

    @abstractmethod
    def forward(self, length: int) -> Float[Tensor, "directions D L"]:
        """The kernels."""

    @abstractmethod
    def step(self, x: Float[Tensor, "B D"], state: Recurrence) -> Float[Tensor, "B D"]:
        """Read one more token of each row."""

    @abstractmethod
    def read(self, x: Float[Tensor, "B T D"], state: Recurrence) -> Float[Tensor, "B T D"]:
        """Read several."""


class DiagonalStateSpace(StateSpace):
    """S4D: A is diagonal and B is 1, since only B · C matters; discretised by zero-order hold (arXiv 2206.11893).

    K[l] = 2 Re Σₙ Cₙ (exp(Δ Aₙ) - 1) / Aₙ · exp(Δ Aₙ)^l + D [l = 0]
    """

    def __init__(self, width: int, states: int, dt: tuple[float, float], directions: int, init: Diagonal):
        super().__init__(width, states, dt, directions)
        self.init = init
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        self._begin(diagonal(self.init, self.states))

    def discrete(self) -> tuple[Complex[Tensor, "D N"], Complex[Tensor, "directions D N"]]:
        """Logarithms of what a step multiplies states with, and the weights of states in what is said."""
        dt, A, C = self.parts(torch.float32)
        step = dt * A
        hold = 2 * (step / 2).exp() * (step / 2).sinh() / A  # (exp(step) - 1) / A, also where step is small
        return step, 2 * C * hold

    def forward(self, length: int) -> Float[Tensor, "directions D L"]:
        step, weights = self.discrete()
        return self._with_skip(powers(weights, step, length))

    def step(self, x: Float[Tensor, "B D"], state: Recurrence) -> Float[Tensor, "B D"]:
        if state.discrete is None:
            step, weights = self.discrete()
            state.discrete = step.exp(), torch.view_as_real(weights[0].conj().resolve_conj()).flatten(-2), self.D
        factor, weights, D = state.discrete
        if torch.is_inference_mode_enabled():  # nothing will ask for the state before
            state.h.mul_(factor).add_(x[..., None])
        else:
            state.h = state.h * factor + x[..., None]
        return (torch.view_as_real(state.h).flatten(-2) * weights).sum(-1).addcmul(D, x)

    def read(self, x: Float[Tensor, "B T D"], state: Recurrence) -> Float[Tensor, "B T D"]:
        step, weights = self.discrete()
        T = x.shape[1]
        kernel = self._with_skip(powers(weights[:1], step, T))
        before = powers(weights[0] * step.exp() * state.h, step, T).mT  # of the state that there was, [B, T, D]
        state.h = state.h * (step * T).exp() + decayed(x, step)
        return convolve(x, kernel) + before


def powers(
    weights: Complex[Tensor, "M D N"], logs: Complex[Tensor, "D N"], length: int
) -> Float[Tensor, "M D {length}"]:
    """Re Σₙ weights · exp(logs)^l for each l < length: a Vandermonde product, in two levels.

    With l = a Q + b and Q about √length, exp(logs)^l is a product of two powers: one batched product of small matrices
    instead of a matrix of D · N · length complex numbers, and 2 √length exponentials of each eigenvalue.
    """
    inner = 1 << max(0, (length - 1).bit_length() + 1) // 2
    outer = -(-length // inner)
    fine = (logs[..., None] * torch.arange(inner, device=logs.device)).exp()  # [D, N, inner]
    coarse = (logs[..., None] * (inner * torch.arange(outer, device=logs.device))).exp()
    left = weights[..., None] * coarse  # [M, D, N, outer]
    # Re(z w) is a product of real matrices twice as long.
    left = torch.cat((left.real, -left.imag), dim=2).permute(1, 0, 3, 2).flatten(1, 2)
    right = torch.cat((fine.real, fine.imag), dim=1)
    found = torch.bmm(left, right).view(len(logs), len(weights), outer * inner)
    return found[..., :length].transpose(0, 1)


def decayed(x: Float[Tensor, "B T D"], logs: Complex[Tensor, "D N"]) -> Complex[Tensor, "B D N"]:
    """Σₛ exp(logs)^(T-1-s) x[s], the state that a text leaves behind, in two levels like `powers`."""
    B, T, D = x.shape
    inner = 1 << max(0, (T - 1).bit_length() + 1) // 2
    outer = -(-T // inner)
    x = F.pad(x.to(logs.real.dtype), (0, 0, outer * inner - T, 0)).view(B, outer, inner, D)
    steps = torch.arange(inner - 1, -1, -1, device=logs.device)
    fine = (logs[:, None] * steps[:, None]).exp()  # [D, inner, N]
    parts = torch.bmm(x.permute(3, 0, 1, 2).flatten(1, 2), torch.view_as_real(fine).flatten(2))
    parts = torch.view_as_complex(parts.view(D, B, outer, -1, 2))
    coarse = (logs[:, None] * (inner * torch.arange(outer - 1, -1, -1, device=logs.device)[:, None])).exp()
    return torch.einsum("dbon,don->bdn", parts, coarse)


class LowRankStateSpace(StateSpace):
    """S4: A = Λ - P P*, diagonal plus low rank, begins as HiPPO-LegS; bilinear discretisation (arXiv 2111.00396).

    The kernel's generating function Σ K[l] zˡ is a few Cauchy products (theorem 3). S4 takes it at the roots of unity,
    which wraps the kernel's tail around and has to be made up for by a power of the matrix; here z lies on a somewhat
    smaller circle, where the tail has died out, so C means the same at every length. That needs double precision.
    """

    def __init__(self, width: int, states: int, dt: tuple[float, float], directions: int):
        super().__init__(width, states, dt, directions)
        self.P = nn.Parameter(torch.empty(width, states // 2, 2))
        self.B = nn.Parameter(torch.empty(width, states // 2, 2))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        eigenvalues, P, B = legs(self.states)
        self._begin(eigenvalues)
        self.P.copy_(torch.view_as_real(P).expand(self.P.shape))
        self.B.copy_(torch.view_as_real(B).expand(self.B.shape))

    def _double(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Δ / 2 [D, 1], A, P, B, C."""
        dt, A, C = self.parts(torch.float64)
        P, B = (torch.view_as_complex(pairs.double()) for pairs in (self.P, self.B))
        return dt / 2, A, P, B, C

    def forward(self, length: int) -> Float[Tensor, "directions D L"]:
        half, A, P, B, C = self._double()
        # All sums over n are weights over one denominator: C B, C P of each direction, P* B, P* P.
        sums = torch.stack((*(c * B for c in C), *(c * P for c in C), P.conj() * B, P.conj() * P), dim=1)
        sums, A = torch.cat((sums, sums.conj()), dim=2), torch.cat((A, A.conj()), dim=1)
        points = 2 * length
        radius = ALIASED ** (1 / points)
        angles = torch.arange(length + 1, device=A.device, dtype=torch.float64) * (-2 * math.pi / points)
        parts = []
        for some in angles.split(max(1, CHUNK // A.numel())):
            z = torch.polar(torch.full_like(some, radius), some)
            kept = torch.is_grad_enabled()
            parts.append(checkpoint(generating, z, half, A, sums, use_reentrant=False) if kept else
                         generating(z, half, A, sums))  # fmt: skip
        kernels = torch.fft.irfft(torch.cat(parts, dim=-1), points)[..., :length]
        grown = radius ** -torch.arange(length, device=A.device, dtype=torch.float64)
        return self._with_skip((kernels * grown).to(torch.promote_types(self.D.dtype, torch.float32)))

    def step(self, x: Float[Tensor, "B D"], state: Recurrence) -> Float[Tensor, "B D"]:
        """(1 - Δ/2 A) h' = (1 + Δ/2 A) h + Δ B u, whose matrix less its diagonal is of rank one (S4, theorem 2)."""
        if state.discrete is None:
            half, A, P, B, C = self._double()
            inverse = 1 / (1 - half * A)
            share = half / (1 + half * 2 * (P.abs() ** 2 * inverse).real.sum(-1, keepdim=True))
            parts = ((1 + half * A) * inverse, half * P * inverse, 2 * half * B * inverse, share * P * inverse)
            parts = (*parts, 2 * P.conj(), 2 * C[0])
            state.discrete = tuple(part.to(state.h.dtype) for part in parts)
        kept, of_P, of_u, back, P, C = state.discrete
        h = kept * state.h - of_P * (P * state.h).sum(-1, keepdim=True).real + of_u * x[..., None]
        state.h = h - back * (P * h).sum(-1, keepdim=True).real
        return (C * state.h).sum(-1).real + self.D * x

    def read(self, x: Float[Tensor, "B T D"], state: Recurrence) -> Float[Tensor, "B T D"]:
        return torch.stack([self.step(token, state) for token in x.unbind(1)], dim=1)


def generating(
    z: Complex[Tensor, " L"], half: Float[Tensor, "D 1"], A: Complex[Tensor, "D N"], sums: Complex[Tensor, "D K N"]
) -> Complex[Tensor, "directions D L"]:
    """C ((1 - z) - Δ/2 (1 + z) (A - P P*))⁻¹ Δ B, by Woodbury's identity, at each z; half: Δ / 2."""
    turned = half * (1 + z)  # [D, L]
    found = torch.bmm(sums, 1 / ((1 - z) - turned[:, None] * A[..., None]))  # [D, K, L]
    directions = (sums.shape[1] - 2) // 2
    of_CB, of_CP, of_PB, of_PP = found.split((directions, directions, 1, 1), dim=1)
    turned = turned[:, None]
    return (2 * half[..., None] * (of_CB - of_CP * of_PB * turned / (1 + turned * of_PP))).transpose(0, 1)
