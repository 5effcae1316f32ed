"""Which machine part computes."""

import torch

from onefold.core import dist
from onefold.core.errors import UserError


def pick(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", dist.local_rank())
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"device {name!r} is not available here; use device=auto, cpu, cuda or mps") from None
    return torch.device(name)
