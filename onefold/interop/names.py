"""Tables of names, tensor by tensor: which one of a format becomes which parameter of ours, and back.

For pictures and encoders; decoders, whose attention layers may differ in shape, have `table.Table`. `{i}` and `{j}` are
numbers (a stage, a block), `*` stands for `weight` or `bias`, the same on both sides; in their names `{i1}` is i + 1.
Every tensor of a file is consumed, or named as ignorable, or refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.table import Heads, Reading, Same, Transform

_NUMBERS = re.compile(r"\\\{([ij])\\\}")
_NO_HEADS = Heads(0, 0, 0)  # Table's transforms have to know them


@dataclass(frozen=True)
class Joined:
    """Several tensors of the same height, one above the other (queries, keys and values)."""

    parts: int = 3

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return torch.cat(parts)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return list(whole.chunk(self.parts))


@dataclass(frozen=True)
class Squeezed:
    """Theirs has axes of length one that ours has not, taken away in this order."""

    axes: tuple[int, ...]

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        tensor = parts[0]
        for axis in self.axes:
            if tensor.shape[axis] != 1:
                raise ValueError(f"shape {list(parts[0].shape)}, where axes of length one are expected")
            tensor = tensor.squeeze(axis)
        return tensor

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        for axis in reversed(self.axes):
            whole = whole.unsqueeze(axis)
        return [whole]


@dataclass(frozen=True)
class Scalar:
    """Theirs has no axes, ours one of length one."""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        if parts[0].ndim:
            raise ValueError(f"shape {list(parts[0].shape)}, where a single number is expected")
        return parts[0].unsqueeze(0)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole.squeeze(0)]


@dataclass(frozen=True)
class Convolution:
    """A convolution's weight as the matrix of `onefold.nn.vision.patches.Patches`, of squares of this side."""

    side: int

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return parts[0].permute(0, 2, 3, 1).flatten(1)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole.reshape(len(whole), self.side, self.side, -1).permute(0, 3, 1, 2)]


class Row(NamedTuple):
    """Our tensor, theirs, and how one becomes the other."""

    ours: str
    theirs: tuple[str, ...]
    how: Transform = Same()

    def find(self, name: str) -> list[str] | None:
        """Their names for our parameter `name`; None when the row is about others."""
        pattern = _NUMBERS.sub(r"(?P<\1>\\d+)", re.escape(self.ours)).replace(r"\*", "(?P<leaf>weight|bias)")
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        numbers = {letter: int(n) for letter, n in match.groupdict().items() if letter != "leaf"}
        following = {f"{letter}1": n + 1 for letter, n in numbers.items()}
        leaf = match.groupdict().get("leaf", "*")
        return [their.format(**numbers, **following).replace("*", leaf) for their in self.theirs]


@dataclass(frozen=True)
class Names:
    """A format's rows. `prefix` may be missing throughout a file (a model without its head); `renamed` are other
    spellings that occur, as patterns with what to write instead; `ignorable` are patterns of tensors to leave."""

    rows: tuple[Row, ...]
    ignorable: tuple[str, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    def read(self, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> Reading:
        """How our parameters `names` are found in `source`, whose missing or unknown tensors are refused."""
        plan = {name: self._find(name) for name in names}
        needed = {their for _, _, theirs in plan.values() for their in theirs}
        bare = not any(name.startswith(self.prefix) for name in source)
        spelled = {self._spell(name, needed, bare): name for name in source}
        if missing := sorted(needed - set(spelled)):
            raise UserError(f"{where}: lacks {_some(missing)}; the weights do not belong to this configuration")
        ignorable = re.compile("|".join(f"(?:{p})" for p in self.ignorable) or r"(?!)")
        if unknown := sorted(name for name in set(spelled) - needed if not ignorable.fullmatch(name)):
            raise UserError(f"{where}: does not know what to do with {_some(unknown)}; nothing was loaded")
        return Reading(plan, {their: spelled[their] for their in needed}, source, where)

    def write(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters under this format's names (views where possible)."""
        written = {}
        for name, tensor in weights.items():
            row, heads, theirs = self._find(name)
            written |= zip(theirs, row.how.write(tensor, heads), strict=True)
        return written

    def _find(self, name: str) -> tuple[Row, Heads, list[str]]:
        for row in self.rows:
            if (theirs := row.find(name)) is not None:
                return row, _NO_HEADS, theirs
        raise UserError(f"this format has no place for the parameter {name}")

    def _spell(self, name: str, needed: set[str], bare: bool) -> str:
        for old, new in self.renamed:
            name = re.sub(old, new, name)
        return self.prefix + name if bare and name not in needed else name


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
