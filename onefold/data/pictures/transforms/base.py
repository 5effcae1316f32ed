"""What all transforms are: functions of a whole batch of pictures in bytes, and of numbers drawn for its rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onefold.data.ahead import Slots
from onefold.data.draws import Draws

BLOCK_BYTES = 1 << 16  # of pictures; what is computed takes several times as much


@dataclass(frozen=True)
class Pictures:
    """A batch on its way. Who holds it owns the memory: a transform may write into it, or return other arrays."""

    images: np.ndarray  # UInt8[B, H, W, C]
    targets: np.ndarray | None  # Float32[B, classes]: probabilities
    slots: Slots  # where memory for further arrays comes from

    def but(self, **changes: Any) -> "Pictures":
        return replace(self, **changes)


# Given a batch and numbers for its rows, the batch as it goes on. Pure: the same draws give the same bytes. In numpy:
# it computes on the calling thread alone, where torch would begin a team of threads for each thread of the loader.
Transform = Callable[[Pictures, Draws], Pictures]


def blocks(rows: np.ndarray, images: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in parts whose pictures stay in a processor's cache while something is computed of them step by step."""
    step = max(1, BLOCK_BYTES // max(1, images[0].nbytes))
    return (rows[begin : begin + step] for begin in range(0, len(rows), step))


def apply(transforms: tuple[Transform, ...], pictures: Pictures, draws: Draws) -> Pictures:
    """One transform after another, each with a stream of numbers of its own: adding one changes no other's draws."""
    for number, transform in enumerate(transforms):
        pictures = transform(pictures, draws.stream(number + 1))
    return pictures
