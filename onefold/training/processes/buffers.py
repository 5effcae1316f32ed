"""What a model notes about the batches that it has seen: the running averages of batch norm.

They lie in buffers and change in every forward pass of training, by the rows of a micro-batch on one process. So that
all processes evaluate and save the same model, their averages over the processes are taken after every step. The next
step needs none of them, so this costs no accuracy, and running averages being linear in what they average, it does not
matter either how often it is done.
"""

import torch
from torch import nn

from onefold.core import dist
from onefold.interop.table import own_buffers


class Buffers:
    """The buffers that a model is saved with, over one step: `keep` before it, then `undo` or `share`."""

    def __init__(self, model: nn.Module):
        self._all = list(own_buffers(model).values())
        self._averages = [buffer for buffer in self._all if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._all]

    def keep(self) -> None:
        if self._all:
            torch._foreach_copy_(self._kept, self._all)

    def undo(self) -> None:
        """As they were before the step: one that saw numbers that are not finite would never come back from them."""
        if self._all:
            torch._foreach_copy_(self._all, self._kept)

    def share(self) -> None:
        """Each becomes its average over the processes, in one exchange."""
        if dist.world() == 1 or not self._averages:
            return
        flat = dist.all_sum(torch.cat([buffer.float().flatten() for buffer in self._averages])) / dist.world()
        for buffer, part in zip(self._averages, flat.split([buffer.numel() for buffer in self._averages])):
            buffer.copy_(part.view_as(buffer))
