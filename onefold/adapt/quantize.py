"""Weights of fewer bits under adapters: QLoRA (arXiv 2305.14314)."""

from typing import Literal

from torch import nn

from onefold.adapt.surgery import Matrix, find, freeze, replace, shared
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.memory import give_back
from onefold.nn.quantized import QuantizedLinear, Scheme
from onefold.nn.sparse.experts import GroupedLinear
from onefold.nn.sparse.quantized import QuantizedGroupedLinear


class QuantizeConfig(Config):
    """Matrices that `targets` fit (see surgery.py) are stored in four or eight bits; no weight trains further.

    Embeddings, norms, biases, routers of experts, and a head that shares the embedding's matrix stay as they are. What
    trains is added by a step after this one.
    """

    kind: Literal["quantize"] = "quantize"
    scheme: Scheme = "nf4"
    double: bool = True  # scales in eight bits, too; schemes of four bits only
    block: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64  # weights that share a scale; int8: those of a row
    targets: tuple[str, ...] = ("blocks.*",)

    def apply(self, model: nn.Module) -> None:
        """Quantise `model` in place, a matrix at a time; what is quantised in this way already stays.

        Errors: UserError when a pattern fits nothing, a part of a packed matrix, or one that cannot be quantised.
        """
        for name in self.names(model):
            self.quantize(model, name)
        freeze(model)

    def quantize(self, model: nn.Module, name: str) -> None:
        """One matrix of `model`, in place."""
        give_back()  # else the plain numbers, and later activations, stay with the process in gaps between others
        layer = model.get_submodule(name)
        kind = QuantizedGroupedLinear if isinstance(layer, GroupedLinear) else QuantizedLinear
        replace(model, name, kind(layer, self.scheme, self.block, self.double))

    def names(self, model: nn.Module) -> list[str]:
        """The matrices that are to be quantised and are not yet. Errors: as `apply`."""
        twofold, found = shared(model), find(model, self.targets)
        for matrix in found:
            if isinstance(matrix.module, nn.Linear) and id(matrix.module.weight) in twofold:
                raise UserError(f"adapt: {matrix.name} is the token embedding, too, which stays as it is")
            if matrix.parts and sum(end - start for start, end in matrix.parts.values()) < matrix.module.out_features:
                raise UserError(f"adapt: {matrix.names()[0]} lies in {matrix.name} with others: name that one")
        return [matrix.name for matrix in found if not self._is_done(matrix)]

    def _is_done(self, matrix: Matrix) -> bool:
        layer = matrix.module
        if isinstance(layer, QuantizedLinear | QuantizedGroupedLinear):
            if (layer.scheme, layer.block, layer.double) == (self.scheme, self.block, self.double):
                return True
        elif isinstance(layer, nn.Linear | GroupedLinear):
            return False
        raise UserError(f"adapt: {matrix.name} is adapted or quantised already; quantize comes first, and once")
