"""The published picture models as data: each function returns the config of one size of a family.

Sources: ViT (arXiv 2010.11929, table 1; Ti and S from 2012.12877), ConvNeXt (2201.03545), ResNet (1512.03385, with the
stride in the 3×3 convolution), NFNet (2102.06171, table 1), MAE (2111.06377). Exact parameter counts are tested.
"""

from collections.abc import Mapping
from typing import TypeVar

from onefold.core.config import unknown_name
from onefold.core.errors import UserError
from onefold.models.transformer import BlockConfig
from onefold.models.vit import ViTConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig

T = TypeVar("T")

# layers, width, heads, pixels a side of a patch
VIT = {
    "ti/16": (12, 192, 3, 16),
    "s/16": (12, 384, 6, 16),
    "s/32": (12, 384, 6, 32),
    "b/16": (12, 768, 12, 16),
    "b/32": (12, 768, 12, 32),
    "l/16": (24, 1024, 16, 16),
    "l/32": (24, 1024, 16, 32),
    "h/14": (32, 1280, 16, 14),
}


def vit(size: str = "b/16", image: int = 224, classes: int = 1000) -> ViTConfig:
    """A vision transformer with class token and learned places."""
    depth, width, heads, patch = _pick(VIT, size, "ViT")
    return ViTConfig(
        image=image, patch=patch, classes=classes, width=width, depth=depth, block=_block(heads, 4 * width)
    )


def _block(heads: int, ffn: int, eps: float = 1e-6) -> BlockConfig:
    return BlockConfig(
        norm=LayerNormConfig(eps=eps),
        mixer=AttentionConfig(heads=heads, causal=False, bias=True, out_bias=True),
        ffn=MLPConfig(width=ffn, activation="gelu"),
    )


def _pick(sizes: Mapping[str, T], size: str, family: str) -> T:
    if size not in sizes:
        raise UserError(f"{family}: {unknown_name(size, sizes).replace('setting', 'size')}")
    return sizes[size]
