"""What an optimizer keeps, in the host's memory instead of the GPU's.

Adam's two moments take twice the room of the weights. Kept on the host (as QLoRA's paged optimizers have it, arXiv
2305.14314, section 3), they come to the GPU for an update a part at a time, and go back: while one part is updated, the
next is on its way there and the last on its way back. The GPU has to hold three parts then, instead of all of it.

Updates are computed by the same rules in the same place, so weights are the same to the last bit with it and without.
It costs the way: 16 bytes for each number that AdamW trains, eight in each direction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onefold.core import dist
from onefold.training.optimizers.adafactor import memory
from onefold.training.optimizers.rules import State, memory_bytes, moves, remembered
from onefold.training.processes.shards import local

PART = 2**28  # bytes that cross over at once; a parameter for which more is kept is a part by itself
SLOTS = 3  # parts that a GPU has to hold: one on its way there, one at work, one on its way back
ALIGNED = 256  # bytes that a tensor's place is a multiple of


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the bytes of its part."""

    start: int
    bytes: int
    shape: tuple[int, ...]

    def view(self, buffer: Tensor, dtype: torch.dtype) -> Tensor:
        return buffer[self.start : self.start + self.bytes].view(dtype).view(self.shape)


@dataclass(frozen=True)
class Part:
    """Neighbours in a group of the optimizer, and where what is kept for them lies in one stretch of bytes."""

    group: int
    members: slice
    places: Mapping[Tensor, Mapping[str, Place]]
    bytes: int

    def of(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The group with these members only."""
        whole = groups[self.group]
        return whole | {key: whole[key][self.members] for key in ("params", "names", "rows")}

    def views(self, buffer: Tensor) -> State:
        """What is kept, in these bytes."""
        return {p: {name: place.view(buffer, p.dtype) for name, place in own.items()} for p, own in self.places.items()}


class Offload:
    """The memory of an optimizer with these groups, on the host."""

    def __init__(self, groups: Sequence[dict[str, Any]]):
        self.groups = groups
        self.parts = list(_parts(groups))
        self._buffers: list[Tensor] = []  # of the parts

    @property
    def host_bytes(self) -> int:
        """What the host has to hold: pages that a GPU reads are allotted in powers of two."""
        return sum(1 << (part.bytes - 1).bit_length() for part in self.parts)

    @property
    def device_bytes(self) -> int:
        """What the GPU has to hold during an update."""
        return min(SLOTS, len(self.parts)) * max(part.bytes for part in self.parts)

    def state(self) -> State:
        """What is kept for each parameter, or what this process holds of it. Zeros at first."""
        pinned = _device(self.groups).type == "cuda"
        for part in self.parts[len(self._buffers) :]:
            self._buffers.append(torch.zeros(part.bytes, dtype=torch.uint8, pin_memory=pinned))
        return {p: own for part, buffer in zip(self.parts, self._buffers) for p, own in part.views(buffer).items()}

    def visit(self) -> Iterator[tuple[dict[str, Any], State]]:
        """Each part that the next update changes, as a group, and what is kept for it, to be worked on where it is.

        `state` has been called before.
        """
        wanted = [
            (part, buffer) for part, buffer in zip(self.parts, self._buffers) if _changes(self.groups[part.group])
        ]
        if not wanted:
            return
        device, size = _device(self.groups), max(part.bytes for part, _ in wanted)
        slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in wanted[:SLOTS]]
        free = [_now(device)] * len(slots)  # since when
        coming, leaving = _Lane(device), _Lane(device)

        def fetch(i: int) -> tuple[Tensor, torch.cuda.Event | None]:
            (part, buffer), slot = wanted[i], i % len(slots)
            here = slots[slot][: part.bytes]
            return here, coming.copy(here, buffer, free[slot])

        try:
            following = fetch(0)
            for i, (part, buffer) in enumerate(wanted):
                here, arrived = following
                if i + 1 < len(wanted):
                    following = fetch(i + 1)
                if arrived is not None:
                    torch.cuda.current_stream(device).wait_event(arrived)
                yield part.of(self.groups), part.views(here)
                free[i % len(slots)] = leaving.copy(buffer, here, _now(device))
        finally:
            coming.finish()
            leaving.finish()


class _Lane:
    """Copies one after the other, beside what a GPU computes. On a CPU a copy is done when the call returns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, target: Tensor, source: Tensor, after: "torch.cuda.Event | None") -> "torch.cuda.Event | None":
        """Copy once that has happened; what happens when it is done."""
        if self.stream is None:
            target.copy_(source)
            return None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def finish(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


def _now(device: torch.device) -> "torch.cuda.Event | None":
    """When a GPU has done what it was told so far."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _device(groups: Sequence[dict[str, Any]]) -> torch.device:
    return local(groups[0]["params"][:1])[0].device


def _changes(group: dict[str, Any]) -> bool:
    return moves(group) or bool(group["ema"])


def _parts(groups: Sequence[dict[str, Any]]) -> Iterator[Part]:
    """All processes make the same parts, since some rules gather matrices: their sizes are those of whole tensors."""
    for index, group in enumerate(groups):
        first, places, size, bytes = 0, {}, 0, 0
        for i, (parameter, rows) in enumerate(zip(group["params"], group["rows"])):
            shared = dist.world() if isinstance(parameter, DTensor) else 1
            own = memory_bytes(group | {"params": [parameter], "rows": [rows]}) // shared
            if places and size + own > PART:
                yield Part(index, slice(first, i), places, bytes)
                first, places, size, bytes = i, {}, 0, 0
            size += own
            places[parameter] = {}
            for name, shape in _shapes(group, parameter, rows):
                place = Place(bytes, shape.numel() * parameter.element_size(), tuple(shape))
                places[parameter][name] = place
                bytes += -(-place.bytes // ALIGNED) * ALIGNED
        if places:
            yield Part(index, slice(first, len(group["params"])), places, bytes)


def _shapes(group: dict[str, Any], parameter: Tensor, rows: tuple[int, ...] | None) -> Iterator[tuple[str, torch.Size]]:
    """Of each tensor that is kept for a parameter, as this process holds it."""
    for name in remembered(group):
        yield name, local([parameter])[0].shape
    if group["rule"] == "adafactor":
        yield from ((name, torch.Size(shape)) for name, shape in memory(parameter, rows).items())
