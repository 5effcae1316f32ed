"""Weights of fewer bits under adapters: QLoRA (arXiv 2305.14314)."""

from typing import Literal

from torch import nn

from onefold.adapt.surgery import Matrix, find, freeze, replace, shared
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.nn.quantized import QuantizedLinear, Scheme


class QuantizeConfig(Config):
    """Matrices that `targets` fit (see surgery.py) are stored in four or eight bits; no weight trains further.

    Embeddings, norms, biases, and a head that shares the embedding's matrix stay as they are. What trains is added
    by a step after this one.
    """

    kind: Literal["quantize"] = "quantize"
    scheme: Scheme = "nf4"
    double: bool = True  # scales in eight bits, too; schemes of four bits only
    block: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64  # weights that share a scale; int8: those of a row
    targets: tuple[str, ...] = ("blocks.*",)

    def apply(self, model: nn.Module) -> None:
        """Quantise `model` in place, a matrix at a time.

        Errors: UserError when a pattern fits nothing, a part of a packed matrix, or one that cannot be quantised.
        """
        keep = shared(model)
        names = [self._whole(matrix, keep) for matrix in find(model, self.targets)]
        for name in names:
            replace(model, name, QuantizedLinear(model.get_submodule(name), self.scheme, self.block, self.double))
        freeze(model)

    def _whole(self, matrix: Matrix, keep: set[int]) -> str:
        """The name of a matrix that may be quantised."""
        if not isinstance(matrix.module, nn.Linear):
            raise UserError(f"adapt: {matrix.name} is adapted or quantised already; quantize comes first, and once")
        if id(matrix.module.weight) in keep:
            raise UserError(
                f"adapt: {matrix.name} is the token embedding, too, which is read row by row: not quantised"
            )
        if matrix.parts and sum(end - start for start, end in matrix.parts.values()) < matrix.module.out_features:
            raise UserError(
                f"adapt: {matrix.names()[0]} lies in {matrix.name} with others; they are quantised together"
            )
        return matrix.name
