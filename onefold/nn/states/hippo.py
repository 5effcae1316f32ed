"""Where state spaces begin: matrices that remember what was read as coefficients of polynomials (HiPPO)."""

import math
from typing import Literal

import torch
from torch import Tensor

Diagonal = Literal["lin", "inv", "legs"]


def legs(states: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS, x' = A x + B u, as a normal matrix less one of rank one, in fp64 (S4, arXiv 2111.00396, section 3.2).

    A[n, k] = -√((2n+1)(2k+1)) below the diagonal, -(n+1) on it; B[n] = √(2n+1). A + P Pᵀ with P[n] = √(n+½) is -½ and
    something skew-symmetric. Returns its eigenvalues Λ with positive imaginary part, and P and B in that basis, all
    Complex[states/2]: A is similar to diag(Λ, Λ̄) - (P, P̄)(P, P̄)*.
    """
    with torch.device("cpu"):
        n = torch.arange(states, dtype=torch.float64)
        root = (2 * n + 1).sqrt()
        A = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
        P = (n + 0.5).sqrt()
        skew = A + P[:, None] * P + 0.5 * torch.eye(states, dtype=torch.float64)
        # Hermitian, so its eigenvectors are orthonormal to the last digit; its eigenvalues come in pairs ±.
        values, vectors = torch.linalg.eigh(-1j * skew)
        values, vectors = values[states // 2 :], vectors[:, states // 2 :]
        change = vectors.mH
        return torch.complex(torch.full_like(values, -0.5), values), change @ P.cdouble(), change @ root.cdouble()


def diagonal(init: Diagonal, states: int) -> Tensor:
    """The eigenvalues of S4D with positive imaginary part, Complex[states/2] in fp64 (arXiv 2206.11893, section 4.3).

    "lin" = -½ + πn i, like Fourier's series; "inv" = -½ + (N/π)(N/(2n+1) - 1) i, near "legs", those of HiPPO-LegS.
    """
    if init == "legs":
        return legs(states)[0]
    with torch.device("cpu"):
        n = torch.arange(states // 2, dtype=torch.float64)
        imaginary = math.pi * n if init == "lin" else states / math.pi * (states / (2 * n + 1) - 1)
        return torch.complex(torch.full_like(imaginary, -0.5), imaginary)
