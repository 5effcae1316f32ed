"""A classifier and a batch that are as small as they can be."""

import torch
from torch import Tensor, nn

from onefold.core.batch import ImageBatch


class SmallClassifier(nn.Module):
    """Patches of a picture, linear in everything: what objectives ask of a model."""

    def __init__(self, classes: int = 10, side: int = 8, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Linear(16, 6)
        self.classifier = nn.Linear(6, classes)

    def features(self, pixels: Tensor) -> Tensor:
        patches = pixels.mean(1).unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
        return self.patch(patches).tanh()

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(1)

    def head(self, features: Tensor) -> Tensor:
        return self.classifier(self.pool(features))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def picture_batch(rows: int, classes: int = 10, side: int = 8, seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return ImageBatch(images=images, targets=torch.eye(classes)[labels], rows_of=torch.arange(rows))
