"""Convolution of texts with kernels as long as themselves, by Fourier transform: O(T log T) instead of O(T²)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 16  # columns of the narrowest bucket of packed texts


def convolve(
    x: Float[Tensor, "B T D"],
    kernels: Float[Tensor, "directions D L"],
    segments: Int[Tensor, "B T"] | None = None,
    memo: dict | None = None,
) -> Float[Tensor, "B T D"]:
    """y[t] = Σ_{s≤t} kernels[0, t-s] x[s], and with a second direction + Σ_{s>t} kernels[1, s-t-1] x[s].

    Kernels are at least `reach(T, …)` long. Each run of equal `segments` is a text of its own, which takes nothing from
    its neighbours; where texts lie is kept in `memo`, which layers share. In fp32, or fp64 where x is.
    """
    found = _texts_once(segments, {} if memo is None else memo)
    if found is None:
        return _convolved(x, kernels)
    flat = x.flatten(0, 1)
    y = torch.zeros_like(flat)
    for bucket in found:
        part = _convolved(flat[bucket.places] * bucket.inside[..., None], kernels)
        y = y.index_copy(0, bucket.back, part.flatten(0, 1).index_select(0, bucket.there))
    return y.view(x.shape)


def reach(length: int, segments: Int[Tensor, "B T"] | None, memo: dict) -> int:
    """How long kernels for rows of `length` columns must be: as the longest text, if texts are packed."""
    found = _texts_once(segments, memo)
    return length if found is None else max(bucket.places.shape[1] for bucket in found)


class Bucket(NamedTuple):
    """Texts of about the same length, filled up to one."""

    places: Int[Tensor, "texts length"]  # of their tokens in the flattened batch
    inside: Bool[Tensor, "texts length"]  # which of them are there
    there: Int[Tensor, " tokens"]  # the same, as places in the flattened bucket
    back: Int[Tensor, " tokens"]  # and where those belong in the flattened batch


def _texts_once(segments: Tensor | None, memo: dict) -> list[Bucket] | None:
    if segments is None or segments.is_meta:  # shapes only: as if every row were a text
        return None
    if "texts" not in memo:
        memo["texts"] = texts(segments)
    return memo["texts"]


def texts(segments: Int[Tensor, "B T"]) -> list[Bucket] | None:
    """Where the texts of packed rows lie, those of about the same length together; None: every row is one text.

    Texts are filled up to the next power of two, so padding is less than what it pads.
    """
    (B, T), device = segments.shape, segments.device
    begins = torch.ones(B, T, dtype=torch.bool, device=device)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = begins.flatten().nonzero()[:, 0]
    if len(starts) == B:
        return None
    lengths = starts.diff(append=starts.new_tensor([B * T]))
    widths = torch.pow(2, lengths.clamp(min=LEAST).sub(1).double().log2().floor().long() + 1)
    buckets = []
    for width in widths.unique().tolist():
        chosen = widths == width
        steps = torch.arange(width, device=device)
        inside = steps < lengths[chosen, None]
        places, there = (starts[chosen, None] + steps) * inside, inside.flatten().nonzero()[:, 0]
        buckets.append(Bucket(places, inside, there, places.flatten()[there]))
    return buckets


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Every row is one text."""
    T, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    points = _smooth(2 * T - 1)
    kernel = kernels[0, :, :T].to(dtype)
    if len(kernels) == 2:  # what comes from behind stands at the end of the circle: lag -1 at its last point
        back = kernels[1, :, : T - 1].flip(-1).to(dtype)
        kernel = torch.cat((F.pad(kernel, (0, points - kernel.shape[1] - back.shape[1])), back), dim=1)
    return _Circular.apply(x.mT.to(dtype), kernel, points).mT.to(x.dtype)


class _Circular(torch.autograd.Function):
    """Circular convolution over `points`; spectra are kept, since torch would transform complex numbers back."""

    @staticmethod
    def forward(ctx, x, kernel, points):
        spectrum, response = torch.fft.rfft(x, points), torch.fft.rfft(kernel, points)
        ctx.save_for_backward(spectrum, response)
        ctx.points, ctx.length = points, kernel.shape[1]
        return torch.fft.irfft(spectrum * response, points)[..., : x.shape[-1]].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        spectrum, response = ctx.saved_tensors
        T, points = gradient.shape[-1], ctx.points
        gradient = torch.fft.rfft(gradient, points)
        x = kernel = None
        if ctx.needs_input_grad[0]:
            x = torch.fft.irfft(gradient * response.conj(), points)[..., :T].contiguous()
        if ctx.needs_input_grad[1]:
            kernel = torch.fft.irfft((gradient * spectrum.conj()).sum(0), points)[..., : ctx.length].contiguous()
        return x, kernel, None


def _smooth(least: int) -> int:
    """The smallest number from `least` on that is a power of two, or 3, 5, 9 or 15 times one: fast to transform."""
    return min(odd << max(0, -(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15))
