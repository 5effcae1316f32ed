"""Pictures mixed with one another, and what they show in the same shares.

The rows of a batch are mixed in pairs: 0 with 1, 2 with 3, and so on; each of both gets a share of its own. As rows
come in random order this is as random as any partner, and as long as each process has an even number of rows, the
same pictures are mixed whatever the number of processes. The last row of an odd number stays as it is.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures, Transform, blocks

POINTS = 4096  # of the table that Beta distributions are drawn from


class Mixup(Config):
    """λ · picture + (1 - λ) · partner, λ from Beta(alpha, alpha) (Zhang et al. 2017, arXiv 1710.09412)."""

    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(default=0.8, gt=0)
    probability: float = Field(default=1.0, ge=0, le=1)

    def build(self) -> Transform:
        return Mix(self.alpha, 1.0, 1 - self.probability, 1.0)


class CutMix(Config):
    """A rectangle of the partner, about 1 - λ of the area, instead (Yun et al. 2019, arXiv 1905.04899)."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, gt=0)
    probability: float = Field(default=1.0, ge=0, le=1)

    def build(self) -> Transform:
        return Mix(1.0, self.alpha, 1 - self.probability, 1 - self.probability)


class MixupOrCutMix(Config):
    """For each picture one or the other: `cutmix_share` of those that are mixed get a rectangle."""

    kind: Literal["mixup_or_cutmix"] = "mixup_or_cutmix"
    mixup: float = Field(default=0.8, gt=0)  # alpha of each
    cutmix: float = Field(default=1.0, gt=0)
    cutmix_share: float = Field(default=0.5, ge=0, le=1)
    probability: float = Field(default=1.0, ge=0, le=1)

    def build(self) -> Transform:
        return Mix(self.mixup, self.cutmix, 1 - self.probability, 1 - self.probability * self.cutmix_share)


class Mix:
    """One number u of a row decides: nothing for u < alone, mixup for u < blended, a rectangle above.

    mixup, cutmix: alpha of each.
    """

    def __init__(self, mixup: float, cutmix: float, alone: float, blended: float):
        self.alone, self.blended = alone, blended
        self.mixup, self.cutmix = Beta(mixup), Beta(cutmix)

    def __call__(self, pictures: Pictures, draws: Draws) -> Pictures:
        """Errors: UserError where pictures have no targets that could be mixed."""
        if pictures.targets is None:
            raise UserError("pictures without labels cannot be mixed: leave mixup and cutmix out of augment")
        batch, height, width, _ = pictures.images.shape
        choice, share, down, right = draws.uniform(4).T
        paired = np.arange(batch) < batch - batch % 2
        partner = np.where(paired, np.arange(batch) ^ 1, np.arange(batch))
        blend = np.flatnonzero(paired & (choice >= self.alone) & (choice < self.blended))
        patch = np.flatnonzero(paired & (choice >= max(self.alone, self.blended)))
        own = np.ones(batch, np.float32)  # the share of each picture that stays its own
        own[blend] = self.mixup(share[blend])
        # A rectangle of the picture's shape, centred anywhere and cut off at its border, as in the paper.
        side = np.sqrt(1 - self.cutmix(share[patch]))
        edges = []  # top, bottom, left, right
        for size, middle in ((height, down[patch]), (width, right[patch])):
            centre, half = np.floor(middle * size), np.floor(side * size) // 2
            edges += [np.clip(edge, 0, size).astype(np.int64) for edge in (centre - half, centre + half)]
        top, bottom, left, end = edges
        own[patch] = 1 - (bottom - top) * (end - left) / (height * width)
        before, after = pictures.images, pictures.slots.empty(pictures.images.shape)
        after[:] = before
        for rows in blocks(blend, before):
            weight = own[rows, None, None, None]
            mixed = before[rows] * weight
            mixed += before[partner[rows]] * (1 - weight)
            mixed += 0.5
            after[rows] = mixed.astype(np.uint8)
        for row, *ends in zip(patch, top, bottom, left, end):
            place = (slice(*ends[:2]), slice(*ends[2:]))
            after[row][place] = before[partner[row]][place]
        targets = own[:, None] * pictures.targets + (1 - own)[:, None] * pictures.targets[partner]
        return pictures.but(images=after, targets=targets.astype(np.float32))


class Beta:
    """The quantile function of Beta(alpha, alpha), Float[n] → Float[n], by a table.

    Its lower half is summed over t = x^alpha, where the density of t is smooth even if that of x has a pole at 0 (for
    alpha < 1); the upper half mirrors it.
    """

    def __init__(self, alpha: float):
        power = min(alpha, 1.0)
        self._x = np.linspace(0, 0.5**power, POINTS) ** (1 / power)
        density = self._x ** (alpha - power) * (1 - self._x) ** (alpha - 1)
        self._below = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
        self._below *= 0.5 / self._below[-1]

    def __call__(self, uniform: np.ndarray) -> np.ndarray:
        lower = np.interp(np.minimum(uniform, 1 - uniform), self._below, self._x)
        return np.where(uniform < 0.5, lower, 1 - lower)
