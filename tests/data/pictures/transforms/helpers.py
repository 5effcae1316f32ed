"""Pictures that no two parts of which look the same, and batches of them on their way."""

import numpy as np

from onefold.data.ahead import Slots
from onefold.data.draws import Draws
from onefold.data.pictures.transforms.base import Pictures


def pictures(count, height, width, channels, seed=0):
    """UInt8[B, H, W, C], smooth with some noise: values over the whole range."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = random.uniform(2, 9, (4, count, 1, 1, channels))
    smooth = np.sin(waves[0] * x[..., None] + waves[1]) * np.cos(waves[2] * y[..., None] + waves[3])
    return np.clip(127 + 120 * smooth + random.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)


def applied(config, images, targets=None, seed=0, epoch=0, rows=None):
    """(images, targets) after the transform; what is given is left as it was."""
    rows = np.arange(len(images)) if rows is None else rows
    batch = Pictures(images.copy(), None if targets is None else targets.copy(), Slots())
    done = config.build()(batch, Draws(seed, epoch, rows))
    return done.images, done.targets
