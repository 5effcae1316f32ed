"""Pictures cut into squares that do not overlap, and the places of the squares.

A square's numbers stand row by row, pixel by pixel, channel by channel. A convolution whose stride is its size is one
matrix product of them, so its weight here is a matrix: `Patches`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onefold.nn.linear import Linear


def patchify(pixels: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B h w P"]:
    """Squares of side² · C numbers; what is left over at the right and the bottom is cut off, as a convolution does."""
    B, C, H, W = pixels.shape
    h, w = H // side, W // side
    rows = pixels.permute(0, 2, 3, 1)[:, : h * side, : w * side]
    return rows.reshape(B, h, side, w, side, C).transpose(2, 3).reshape(B, h, w, side * side * C)


def unpatchify(patches: Float[Tensor, "B h w P"], side: int) -> Float[Tensor, "B C H W"]:
    """The picture of these squares."""
    B, h, w, P = patches.shape
    rows = patches.reshape(B, h, w, side, side, P // side**2).transpose(2, 3)
    return rows.reshape(B, h * side, w * side, -1).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """A convolution of stride `side` and size `side`: Float[B, C, H, W] → Float[B, h, w, D]."""

    def __init__(self, channels: int, side: int, width: int):
        super().__init__()
        self.side = side
        self.linear = Linear(channels * side**2, width)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        return self.linear(patchify(pixels, self.side))


def resample(places: Float[Tensor, "N D"], grid: tuple[int, int]) -> Float[Tensor, "M D"]:
    """Vectors of a square of places, stretched bicubically to `grid` (rows, columns): arXiv 2010.11929, section 3.2.

    Shrinking averages over what it leaves out.
    """
    side = round(len(places) ** 0.5)
    if grid == (side, side):
        return places
    square = places.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    return stretched.flatten(2)[0].T.to(places.dtype)


def sines(side: int, width: int) -> Float[Tensor, "N width"]:
    """Fixed vectors of the places of a square: a quarter each of sin and cos of the column, sin and cos of the row.

    The order of the masked autoencoder (arXiv 2111.06377); frequencies as in arXiv 1706.03762.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), -1)  # [side, width / 2]
    columns, rows = waves.expand(side, side, -1), waves[:, None].expand(side, side, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1).float()
