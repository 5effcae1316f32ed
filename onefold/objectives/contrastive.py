"""Contrastive learning: two encodings of one thing are nearer to each other than to those of all else in the batch.

One loss for text and code (cpt), pictures and text (CLIP), questions and passages (DPR): the batch says what its two
sides are, the model which of its methods reads either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onefold.core import dist
from onefold.core.batch import Batch, PairedTextBatch
from onefold.core.config import Config
from onefold.models.embedder import embedder_of
from onefold.objectives.base import Loss, Term
from onefold.objectives.cross_entropy import linear_cross_entropy

LARGEST_SCALE = math.log(100)  # of the logits, as CLIP bounds it: training becomes unstable beyond (arXiv 2103.00020)
SCORES = 2**24  # held at once when ranks are counted


class InfoNCE(Config):
    """Symmetric cross-entropy over scaled products, in nats per pair (arXiv 2201.10005, section 2; 1807.03748).

    The model has `sides`, the names of the two methods that encode what `batch.sides()` gives, and `log_scale()`, the
    logarithm of what products are multiplied with, which is learned. Negatives are the other pairs of the whole batch,
    over all processes. Metric: `accuracy`, the share of rows of the first side whose own partner is the nearest.
    """

    reads: ClassVar = PairedTextBatch
    loss_unit: ClassVar = "nats per pair"
    kind: Literal["infonce"] = "infonce"

    def going_on(self, start: Config, classes: int) -> Config:
        """The embedder that begins with a model; see onefold.objectives.base.body_of."""
        return embedder_of(start)

    def build(self, frozen: Mapping[str, Any] | None = None) -> "Contrast":
        return Contrast()


@dataclass(frozen=True)
class Contrast:
    """What InfoNCE builds. Rows are compared with one another, so that it takes whole batches, and splits them itself:

    `chunk`: rows that the encoders read at once. Of each chunk only the encodings are kept, and it is read again for
    the backward pass, with the same random numbers; the gradient is that of the whole batch (cf. arXiv 2101.06983).
    """

    chunk: int | None = None  # None: all rows at once, each once

    def in_chunks(self, rows: int) -> "Contrast":
        return replace(self, chunk=rows)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        first, second = self.encode(model, batch)
        device = "cpu" if first.is_meta else first.device.type
        with torch.autocast(device, enabled=False):  # logits of up to 100 need all their digits
            return infonce(first.float(), second.float(), bounded(model.log_scale().float()))

    def encode(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """What the model makes of either side of each row that counts.

        Every process reads as many chunks, since sharded weights are gathered by all of them together.
        """
        parts = [batch]
        if self.chunk is not None:
            parts = batch.split(self.chunk)
            parts += parts[-1:] * (dist.all_max(len(parts), batch.sides()[0][0].device) - len(parts))
        again = len(parts) > 1 and torch.is_grad_enabled()
        found: list[list[Tensor]] = [[], []]
        for part in parts:
            for encoded, name, inputs in zip(found, model.sides, part.sides(), strict=True):
                read = getattr(model, name)
                encoded.append(checkpoint(read, *inputs, use_reentrant=False) if again else read(*inputs))
        first, second = (some[0] if len(some) == 1 else torch.cat(some) for some in found)
        rows = batch.rows if batch.counted else 0
        return first[:rows], second[:rows]


def infonce(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], log_scale: Float[Tensor, "1"]) -> Loss:
    """The mean of both directions' cross-entropies, summed over this process's rows.

    Logits exist for a chunk of rows at a time. Candidates are the encodings of all processes, and their gradients
    return to the process that made them.
    """
    rows, device = len(first), first.device
    candidates = [dist.gather_rows(side) for side in (first, second)]
    targets = torch.arange(rows, device=device) + candidates[0][1]
    weights, scale = torch.ones(rows, device=device), log_scale.exp()
    forth, _ = linear_cross_entropy(first * scale, candidates[1][0], targets, weights)
    back, _ = linear_cross_entropy(second * scale, candidates[0][0], targets, weights)
    count = first.new_tensor(rows)
    right = Term(nearest(first.detach(), candidates[1][0].detach(), targets), count)
    return Loss({"nce": Term((forth + back) / 2, count)}, {"accuracy": right})


def nearest(queries: Tensor, candidates: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """How many queries have no candidate nearer than the one that they should find; of equally near ones it is chance.

    Otherwise an encoder that makes the same of everything would seem to be always right.
    """
    found = queries.new_zeros(())
    size = max(1, SCORES // len(candidates))
    for start in range(0, len(queries), size):
        scores, own = queries[start : start + size] @ candidates.T, targets[start : start + size, None]
        best = scores.gather(1, own)
        found = found + ((scores <= best).all(1) / (scores == best).sum(1)).sum()
    return found


def bounded(log_scale: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """At most ln 100. Beyond it a gradient passes only if it leads back, as if the parameter itself were clipped."""
    return _Bounded.apply(log_scale)


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(max=LARGEST_SCALE)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ((x < LARGEST_SCALE) | (gradient > 0))  # a step goes against the gradient
