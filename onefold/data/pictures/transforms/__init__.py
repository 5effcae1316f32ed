"""Pictures changed at random, whole batches at a time, bytes in and bytes out."""

from typing import Annotated

from onefold.core.config import Slot
from onefold.data.pictures.transforms.erase import RandomErasing
from onefold.data.pictures.transforms.frame import CentreCrop, RandomResizedCrop, Resize
from onefold.data.pictures.transforms.light import ColorJitter
from onefold.data.pictures.transforms.mixing import CutMix, Mixup, MixupOrCutMix
from onefold.data.pictures.transforms.rand_augment import RandAugment
from onefold.data.pictures.transforms.shift import Flip, PadCrop

FRAMES = (RandomResizedCrop, CentreCrop, Resize)  # those that say which part of a picture is read at all
Augmentation = Annotated[
    RandomResizedCrop
    | CentreCrop
    | Resize
    | Flip
    | PadCrop
    | ColorJitter
    | RandAugment
    | RandomErasing
    | Mixup
    | CutMix
    | MixupOrCutMix,
    Slot(),
]
