"""Reconstruction: what a masked autoencoder learns from, the pixels of the patches that it did not see."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from onefold.core.batch import ImageBatch
from onefold.core.config import Config
from onefold.objectives.base import Loss, Term

SEED = 0  # of the masks in evaluations, which then all ask the same


class Reconstruction(Config):
    """Mean squared error of the masked patches' pixels, each patch first normalised to mean 0 and variance 1.

    (arXiv 2111.06377, section 3.) Training draws masks from torch's generator, which the trainer seeds for each step.
    """

    reads: ClassVar = ImageBatch
    loss_unit: ClassVar = "squared error"
    kind: Literal["reconstruction"] = "reconstruction"

    def going_on(self, start: Config, classes: int) -> Config:
        """The whole autoencoder; see onefold.objectives.base.body_of."""
        return start

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, ImageBatch, int], Loss]:
        def loss(model: nn.Module, batch: ImageBatch, step: int) -> Loss:
            prediction, target, mask = model.reconstruct(batch.pixels(), None if model.training else SEED)
            return masked_error(prediction.float(), normalised(target.float()), mask)

        return loss


def normalised(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Each patch with mean 0 and variance 1; a patch of one colour becomes 0."""
    variance, mean = patches.var(-1, keepdim=True), patches.mean(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_error(prediction: Float[Tensor, "B N P"], target: Float[Tensor, "B N P"], mask: Bool[Tensor, "B N"]) -> Loss:
    """Squared error of the masked patches, averaged over a patch's values; counted in patches."""
    error = (prediction - target).square().mean(-1)
    return Loss({"mse": Term((error * mask).sum(), mask.sum().float())})
