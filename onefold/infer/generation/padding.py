"""Rows of ids of different lengths as one matrix."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def padded(
    rows: Sequence[Sequence[int]], pad: int = 0, left: bool = False, device: torch.device | str = "cpu"
) -> Int[Tensor, "B T"]:
    """As wide as the longest row, with `pad` behind the shorter ones, or before them (`left`)."""
    width = max(map(len, rows), default=0)
    fill = [[pad] * (width - len(row)) for row in rows]
    whole = [[*some, *row] if left else [*row, *some] for row, some in zip(rows, fill)]
    return torch.tensor(whole, dtype=torch.long, device=device).view(len(rows), width)
