"""Where a token stands: rotary angles, linear biases, and vectors added to the embedding."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.core.config import Config, Slot


class LinearScaling(Config):
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float

    def apply(self, frequencies: Tensor) -> Tensor:
        return frequencies / self.factor


class Llama3Scaling(Config):
    """Llama 3.1's: long wavelengths are stretched by `factor`, short ones kept, the band between blended."""

    kind: Literal["llama3"] = "llama3"
    factor: float = 8.0
    low: float = 1.0  # wavelengths above context/low are stretched in full
    high: float = 4.0  # wavelengths below context/high are kept
    context: int = 8192  # what the model was first trained on

    def apply(self, frequencies: Tensor) -> Tensor:
        turns = self.context * frequencies / (2 * math.pi)  # over the original context
        keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * (keep + (1 - keep) / self.factor)


class RotaryConfig(Config):
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves convention.

    `fraction` of each head turns, the rest stays (GPT-NeoX turns a quarter).
    """

    kind: Literal["rotary"] = "rotary"
    theta: float = 10000.0
    fraction: float = 1.0
    scaling: Annotated[LinearScaling | Llama3Scaling, Slot()] | None = None

    def turned(self, head_width: int) -> int:
        """How many of a head's channels turn."""
        return int(head_width * self.fraction)

    def angles(self, positions: Int[Tensor, "B T"], head_width: int) -> Float[Tensor, "B T half"]:
        """Radians by which each pair of channels turns at each position, in fp32."""
        turned = self.turned(head_width)
        exponents = torch.arange(0, turned, 2, device=positions.device, dtype=torch.float32) / turned
        frequencies = 1.0 / self.theta**exponents
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies)
        return positions[..., None].float() * frequencies


def turns(
    angles: Float[Tensor, "B T half"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B T 1 turned"], Float[Tensor, "B T 1 turned"]]:
    """What `rotate` multiplies by: cosines twice over, sines with the signs that the two halves take."""
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(
    x: Float[Tensor, "B T H Dh"], cos: Float[Tensor, "#B T 1 turned"], sin: Float[Tensor, "#B T 1 turned"]
) -> Float[Tensor, "B T H Dh"]:
    """Turn the first channels of every head by `turns`; channel i pairs with channel i + turned / 2."""
    turned = cos.shape[-1]
    part = x if turned == x.shape[-1] else x[..., :turned]
    by_hand = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    y = _Turn.apply(part, cos, sin) if by_hand else _turn(part, cos, sin)
    return y if part is x else torch.cat((y, x[..., turned:]), dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Three passes over memory, where taking the halves apart and joining them again takes seven.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class _Turn(torch.autograd.Function):
    """A turn, whose gradient turns back."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, -sin), None, None


class AlibiConfig(Config):
    """Attention with linear biases (Press et al. 2021, arXiv 2108.12409)."""

    kind: Literal["alibi"] = "alibi"

    @staticmethod
    def slopes(heads: int, device: torch.device | None = None) -> Float[Tensor, " heads"]:
        """2^(-8i/n) for the nearest power of two n, then every other slope of 2n for the heads that are left."""
        n = 2 ** math.floor(math.log2(heads))
        powers = [2 ** (-8 * (i + 1) / n) for i in range(n)]
        powers += [2 ** (-4 * (i + 1) / n) for i in range(0, 2 * (heads - n), 2)]
        return torch.tensor(powers, device=device)


class RelativeBiasConfig(Config):
    """T5's trained biases of attention (Raffel et al. 2019, arXiv 1910.10683, section 2.1): one a head and distance.

    Half of the buckets are single distances, the others grow up to `distance`; all beyond share the last one. The
    layers of a stack share them. Where attention looks both ways, either way has half of the buckets.
    """

    kind: Literal["relative"] = "relative"
    buckets: int = 32
    distance: int = 128

    def build(self, heads: int, causal: bool) -> "RelativeBias":
        return RelativeBias(self, heads, causal)


class RelativeBias(nn.Module):
    def __init__(self, config: RelativeBiasConfig, heads: int, causal: bool):
        super().__init__()
        self.buckets, self.distance, self.causal = config.buckets, config.distance, causal
        self.weight = nn.Parameter(torch.zeros(config.buckets, heads))

    def forward(self, distance: Int[Tensor, "*batch T S"]) -> Float[Tensor, "*batch H T S"]:
        """`distance`: the query's column minus the key's."""
        return F.embedding(self._bucket(distance), self.weight).movedim(-1, -3)

    def _bucket(self, distance: Tensor) -> Tensor:
        count = self.buckets if self.causal else self.buckets // 2
        exact = count // 2
        away = distance.clamp(min=0) if self.causal else distance.abs()
        share = (away.clamp(min=1).float() / exact).log() / math.log(self.distance / exact)
        far = (exact + (share * (count - exact)).long()).clamp(max=count - 1)
        bucket = torch.where(away < exact, away, far)
        return bucket if self.causal else bucket + count * (distance < 0)  # those behind the query come second


class LearnedPositionConfig(Config):
    """A trained vector for each of `context` positions, added to the embedding."""

    kind: Literal["learned"] = "learned"
    context: int

    def build(self, width: int) -> nn.Module:
        return nn.Embedding(self.context, width)


class SinusoidalPositionConfig(Config):
    """The Transformer's fixed sines and cosines, interleaved (arXiv 1706.03762, section 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    halves: bool = False  # all sines, then all cosines (Marian)

    def build(self, width: int) -> nn.Module:
        return Sinusoidal(width, self.halves)


class Sinusoidal(nn.Module):
    def __init__(self, width: int, halves: bool = False):
        super().__init__()
        self.width, self.halves = width, halves

    def forward(self, positions: Int[Tensor, "B T"]) -> Float[Tensor, "B T width"]:
        exponents = torch.arange(0, self.width, 2, device=positions.device) / self.width
        angles = positions[..., None].float() / 10000.0**exponents
        if self.halves:
            return torch.cat((angles.sin(), angles.cos()[..., : self.width // 2]), dim=-1)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : self.width]
