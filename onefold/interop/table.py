"""Tables of names: which tensor of a published format becomes which parameter of ours, and back.

A row speaks of modules; `weight` and `bias` follow. `{i}` is the layer. Every tensor of a file is consumed, or named
as ignorable, or refused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.models.transformer import DecoderConfig


class Heads(NamedTuple):
    """The shape of one attention layer."""

    queries: int
    keys: int  # and as many values
    width: int

    @property
    def rows(self) -> tuple[int, int, int]:
        return self.queries * self.width, self.keys * self.width, self.keys * self.width


class Transform(Protocol):
    """How the parts of a format become one parameter, and the parameter their parts again."""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor: ...
    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]: ...


class Same:
    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return parts[0]

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole]


class Transposed:
    """Matrices lie the other way round (GPT-2's "Conv1D")."""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return parts[0].t() if parts[0].ndim == 2 else parts[0]

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole.t() if whole.ndim == 2 else whole]


class GateUp:
    """Two matrices of the same height, gate first."""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return torch.cat(parts)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return list(whole.chunk(2))


@dataclass(frozen=True)
class Stacked:
    """Every expert has matrices of its own: so many that are one of ours, of the first expert, then of the next, …"""

    each: int = 1

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return torch.stack([torch.cat(parts[i : i + self.each]) for i in range(0, len(parts), self.each)])

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [part for matrix in whole for part in matrix.chunk(self.each)]


@dataclass(frozen=True)
class QueryKeyValue:
    """Queries, keys and values are three matrices.

    `interleaved`: rotary pairs are neighbours (Meta, Mistral, llama.cpp) instead of half a head apart.
    """

    interleaved: bool = False

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        if [len(part) for part in parts] != list(heads.rows):
            raise ValueError(f"queries, keys and values have {[len(p) for p in parts]} rows instead of {heads.rows}")
        if self.interleaved:
            parts = [_halves(part, heads.width) for part in parts[:2]] + parts[2:]
        return torch.cat(parts)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        parts = list(whole.split(heads.rows))
        return [_neighbours(part, heads.width) for part in parts[:2]] + parts[2:] if self.interleaved else parts


class HeadByHead:
    """GPT-NeoX: first head's query, key and value, then the second head's, …"""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return _swapped(parts[0], heads.queries, 3, heads.width)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [_swapped(whole, 3, heads.queries, heads.width)]


def _swapped(rows: Tensor, outer: int, inner: int, width: int) -> Tensor:
    return rows.view(outer, inner, width, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _halves(rows: Tensor, width: int) -> Tensor:
    return rows.view(-1, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _neighbours(rows: Tensor, width: int) -> Tensor:
    return rows.reshape(-1, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


class Row(NamedTuple):
    """Our module, theirs, and how one becomes the other."""

    ours: str
    theirs: tuple[str, ...]
    how: Transform = Same()


@dataclass(frozen=True)
class Table:
    """A format's names. `prefix` may be missing throughout a file (saved without its head); `renamed` maps
    other spellings that occur in files to those of the rows; `ignorable` are patterns of tensors that say nothing."""

    rows: tuple[Row, ...]
    ignorable: tuple[str, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    def read(self, config: DecoderConfig, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> "Reading":
        """How the parameters `names` of a model are found in `source`, whose missing or unknown tensors are refused."""
        spelled = {self._spell(name, source): name for name in source}
        shapes = _shapes(config)
        plan = {name: self._find(name, shapes) for name in names}
        needed = {their for row, _, theirs in plan.values() for their in theirs}
        if missing := sorted(needed - set(spelled)):
            raise UserError(f"{where}: lacks {_some(missing)}; the weights do not belong to this configuration")
        pattern = re.compile("|".join(f"(?:{p})" for p in (*self.ignorable, *self._shared(config))) or r"(?!)")
        if unknown := sorted(name for name in set(spelled) - needed if not pattern.fullmatch(name)):
            raise UserError(f"{where}: does not know what to do with {_some(unknown)}; nothing was loaded")
        return Reading(plan, {their: spelled[their] for their in needed}, source, where)

    def write(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters under this format's names (views where possible)."""
        written, shapes = {}, _shapes(config)
        for name, tensor in weights.items():
            row, heads, theirs = self._find(name, shapes)
            written |= zip(theirs, row.how.write(tensor, heads), strict=True)
        return written

    def _find(self, name: str, shapes: list[Heads]) -> tuple[Row, Heads, list[str]]:
        module, layer, leaf = _pattern(name)
        row = next((row for row in self.rows if row.ours == module), None)
        if row is None:
            raise UserError(f"this format has no place for the parameter {name}")
        return row, shapes[layer or 0], [f"{t.format(i=layer)}.{leaf}" for t in row.theirs]

    def _spell(self, name: str, source: Mapping[str, Tensor]) -> str:
        for old, new in self.renamed:
            name = re.sub(old, new, name)
        if self.prefix and not any(other.startswith(self.prefix) for other in source) and not self._stands_alone(name):
            name = self.prefix + name
        return name

    def _stands_alone(self, name: str) -> bool:
        return any(their + ".weight" == name for row in self.rows for their in row.theirs if row.ours == "unembed")

    def _shared(self, config: DecoderConfig) -> list[str]:
        """A tied head may be in the file again."""
        rows = [row for row in self.rows if row.ours == "unembed" and config.tied]
        return [re.escape(their) + r"\.weight" for row in rows for their in row.theirs]


@dataclass(frozen=True)
class TableOf:
    """Names that depend on the parts of a model."""

    table: Callable[[DecoderConfig], Table]

    def read(self, config: DecoderConfig, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> "Reading":
        return self.table(config).read(config, names, source, where)

    def write(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.table(config).write(config, weights)


@dataclass(frozen=True)
class Reading(Mapping[str, Tensor]):
    """Our parameters by name, each read and transformed when it is asked for."""

    plan: dict[str, tuple[Row, Heads, list[str]]]
    spelled: dict[str, str]
    source: Mapping[str, Tensor]
    where: str

    def __getitem__(self, name: str) -> Tensor:
        row, heads, theirs = self.plan[name]
        parts = [self.source[self.spelled[their]] for their in theirs]
        try:
            return row.how.read(parts, heads)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.where}: {theirs[0]} does not fit the configuration ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """All that a model is saved with, by name, detached: its parameters, each shared one once, and `own_buffers`."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | own_buffers(model)


def own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of a model (the running averages of batch norm), by name."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _shapes(config: DecoderConfig) -> list[Heads]:
    return [Heads(*block.mixer.widths(config.width)) for block in config.blocks()]


def _pattern(name: str) -> tuple[str, int | None, str]:
    module, _, leaf = name.rpartition(".")
    match = re.match(r"blocks\.(\d+)\.", module)
    if not match:
        return module, None, leaf
    return "blocks.{i}." + module[match.end() :], int(match[1]), leaf


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
