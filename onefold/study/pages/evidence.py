"""Where in a picture a model finds what it names: attention of vision transformers, and gradients of any model.

Neither is an explanation. Attention says which squares were read, a gradient which pixels the answer hangs on.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onefold.core.errors import UserError
from onefold.infer.generation.engine import evaluating
from onefold.models.vision.vit import ViT


class Watching(TorchFunctionMode):
    """While it is entered, the weights of every attention over all tokens, averaged over heads: Float[B, T, T] each.

    The fused kernels never hold them, so they are computed beside, from the queries and keys that the kernels get.
    """

    def __init__(self):
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k = args[:2]
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            scores = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5
            self.weights.append(scores.softmax(-1).mean(1))
        return func(*args, **(kwargs or {}))


def attention_maps(
    network: nn.Module, pixels: Float[Tensor, "B C H W"], through: Literal["all", "last"] = "all"
) -> Float[Tensor, "B h w"]:
    """How much what the classifier sees was made from each square of a picture; every map adds up to at most 1.

    "all": through all layers and past each of them, (A + 1) / 2 multiplied up: rollout (arXiv 2005.00928). "last": the
    last layer's attention alone. Errors: UserError when the model is no vision transformer.
    """
    if not isinstance(network, ViT):
        raise UserError(f"attention maps need a vision transformer, not a {type(network).__name__}: use saliency")
    with evaluating(network), Watching() as seen:
        network.features(pixels)
    paths = seen.weights[-1]
    if through == "all":
        itself = torch.eye(paths.shape[-1], device=paths.device)
        paths = itself.expand_as(paths)
        for weights in seen.weights:
            paths = (weights + itself) / 2 @ paths
    prefix, patch = network.embed.prefix, network.config.patch
    pooled = paths[:, 0] if network.config.pool == "class" else paths[:, prefix:].mean(1)
    return pooled[:, prefix:].unflatten(1, (pixels.shape[2] // patch, pixels.shape[3] // patch))


def saliency(
    network: nn.Module,
    pixels: Float[Tensor, "B C H W"],
    classes: Int[Tensor, " B"],
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> Float[Tensor, "B H W"]:
    """|d logit of the class / d pixel|, the largest of a pixel's channels (arXiv 1312.6034).

    Averaged over `samples` copies with Gaussian noise, `noise` times as wide as the picture's range (arXiv 1706.03825);
    one sample is the plain gradient, without noise.
    """
    generator = torch.Generator(pixels.device).manual_seed(seed)
    wide = noise * (pixels.amax((1, 2, 3), keepdim=True) - pixels.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(pixels)
    with evaluating(network), torch.enable_grad():
        for _ in range(samples):
            noisy = pixels.detach().clone()
            if samples > 1:
                noisy += wide * torch.randn(pixels.shape, generator=generator, device=pixels.device)
            logits = network(noisy.requires_grad_()).float()
            total += torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), noisy)[0].abs()
    return total.amax(1) / samples


def evidence(
    network: nn.Module, pixels: Float[Tensor, "B C H W"], classes: Int[Tensor, " B"]
) -> Float[Tensor, "B h w"]:
    """Attention through all layers where the model has any, saliency of `classes` elsewhere."""
    return attention_maps(network, pixels) if isinstance(network, ViT) else saliency(network, pixels, classes)
