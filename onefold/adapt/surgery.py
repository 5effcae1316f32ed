"""Finding matrices of a model by patterns, and putting other modules in their places.

A pattern is matched as in a shell against a matrix's name or the end of it: "mixer.q" means every layer's queries,
"blocks.*" every matrix in a block. Of matrices packed into one (`qkv`, `kv`, `gate_up`) each has a name of its own,
"blocks.0.mixer.q"; the packed one as a whole is meant only by a pattern that ends in its name. A matrix for each expert
of a layer has one name, "blocks.0.ffn.experts.out", and all of them are meant.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.nn.linear import Linear
from onefold.nn.sparse.experts import GroupedLinear

PLAIN = (Linear, GroupedLinear)
PARTS = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class Matrix:
    """A linear layer, or one for each expert: anything that has weight matrices and tells them by `dense()`."""

    name: str  # as it is without surgery
    path: str  # where it lies in the model
    module: nn.Module
    parts: dict[str, tuple[int, int]]  # the matrices packed in it, or those of them that are meant: first row, end

    @property
    def is_plain(self) -> bool:
        """Whether no surgery was done to it."""
        return isinstance(self.module, PLAIN)

    @property
    def experts(self) -> int | None:
        """How many matrices there are, where each expert has one."""
        return getattr(getattr(self.module, "base", self.module), "experts", None)

    def names(self) -> list[str]:
        above = self.name.rpartition(".")[0]
        return [".".join(filter(None, (above, part))) for part in self.parts] or [self.name]


def matrices(model: nn.Module, above: str = "") -> Iterator[Matrix]:
    """Every linear layer, in the model's order; what lies inside of one is its own affair."""
    for leaf, child in model.named_children():
        path = f"{above}.{leaf}" if above else leaf
        if hasattr(type(child), "dense"):
            rows = getattr(model, "packed", {}).get(f"{leaf}.weight", ())
            ends = [sum(rows[: i + 1]) for i in range(len(rows))]
            parts = {part: (end - size, end) for part, size, end in zip(PARTS.get(leaf, ()), rows, ends)}
            yield Matrix(path.replace(".base.", "."), path, child, parts)
        else:
            yield from matrices(child, path)


def find(model: nn.Module, patterns: Sequence[str]) -> list[Matrix]:
    """The linear layers that any of the patterns fits, each with the parts that are meant; none: the whole of it.

    Errors: UserError when a pattern fits nothing; it lists names like it.
    """
    found, used, everything = [], set(), list(matrices(model))
    for matrix in everything:
        leaf = matrix.name.rpartition(".")[2]
        whole = [p for p in patterns if fits(matrix.name, p) and (not matrix.parts or p.rpartition(".")[2] == leaf)]
        told = {} if whole else {part: _fitting(name, patterns) for part, name in zip(matrix.parts, matrix.names())}
        used.update(whole, *told.values())
        meant = {part: matrix.parts[part] for part, by in told.items() if by}
        if whole or meant:
            found.append(with_changes(matrix, parts=meant))
    if unused := [pattern for pattern in patterns if pattern not in used]:
        raise UserError(f"adapt: {unused[0]!r} fits no matrix of the model; {_like(unused[0], everything)}")
    return found


def fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where the model has another."""
    above, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(above), leaf, module)


class Switch:
    """Which of a model's adapters is active; all that an adapter adds asks the one switch of its model."""

    def __init__(self):
        self.names: list[str] = []
        self.active: str | None = None
        self.steps: list[Config] = []  # surgery beneath the adapters
        self.whole: set[str] = set()  # parameters that were trained in full, as all adapters were
        self.merged = False  # whether the active one is a part of the weights for now: merge.py
        self.replaced: list[tuple[Tensor, Tensor]] = []  # those weights, and their numbers of before

    @property
    def beside(self) -> str | None:
        """The adapter that matrices have to compute beside themselves."""
        return None if self.merged else self.active

    def add(self, name: str) -> None:
        """Steps of one name make up one adapter. Raises UserError for what torch cannot call a module."""
        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise UserError(f"an adapter cannot be called {name!r}: choose a name of letters, digits, - and _")
        self.unmerge()
        self.names += [] if name in self.names else [name]
        self.active = name

    def use(self, name: str | None) -> None:
        """Let this adapter work from now on, or none. Raises UserError naming those that there are."""
        if name is not None and name not in self.names:
            raise UserError(f"no adapter named {name!r}; there are {', '.join(self.names) or 'none'}")
        if name != self.active:
            self.unmerge()
        self.active = name

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give weights that the active adapter was merged into their own numbers back, to the last bit."""
        for weight, before in self.replaced:
            weight.copy_(before)
        self.merged, self.replaced = False, []


def switch_of(model: nn.Module) -> Switch:
    """The switch of this model, which has no adapters at first."""
    if not isinstance(getattr(model, "switch", None), Switch):
        model.switch = Switch()
    return model.switch


def freeze(model: nn.Module, adapter: str | None = None) -> None:
    """Let nothing train but the adapter of this name and a classifier, which belongs to the task."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier.") or f".adapters.{adapter}." in name)


def shared(model: nn.Module) -> set[int]:
    """Ids of the parameters that have more than one place in the model."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, places in counts.items() if places > 1}


def _fitting(name: str, patterns: Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if fits(name, pattern)]


def _like(pattern: str, everything: list[Matrix]) -> str:
    """Names as they would be given, nearest first: without their layers' numbers."""
    kinds: dict[str, None] = {}
    for matrix in everything:
        for name in matrix.names():
            parts = name.split(".")
            last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
            kinds.setdefault(".".join(parts[last + 1 :]))
    leaf = {kind: kind.rpartition(".")[2] for kind in kinds}
    near = [kind for kind in kinds if pattern.removesuffix("_proj").rpartition(".")[2] == leaf[kind]]
    near += [kind for kind in get_close_matches(pattern, kinds, n=4, cutoff=0.4) if kind not in near]
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(kinds)}"
