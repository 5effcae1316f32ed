"""The published picture models as data: each function returns the config of one size of a family.

Sources: ViT (arXiv 2010.11929, table 1; Ti and S from 2012.12877), ConvNeXt (2201.03545), ResNet (1512.03385, with the
stride in the 3×3 convolution), NFNet (2102.06171, table 1), MAE (2111.06377). Exact parameter counts are tested.
"""

from onefold.models.families import pick
from onefold.models.transformer import BlockConfig
from onefold.models.vision.convnext import ConvNeXtConfig
from onefold.models.vision.mae import MAEConfig
from onefold.models.vision.nfnet import NFNetConfig
from onefold.models.vision.resnet import ResNetConfig
from onefold.models.vision.vit import ViTConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig

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

# blocks and widths of the stages
CONVNEXT = {
    "t": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "s": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "b": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "l": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xl": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}

# blocks of the stages
RESNET = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}

# how often the blocks of F0 (1, 2, 6, 3), pixels a side in training, dropout
NFNET = {
    "f0": (1, 192, 0.2),
    "f1": (2, 224, 0.3),
    "f2": (3, 256, 0.4),
    "f3": (4, 320, 0.4),
    "f4": (5, 384, 0.5),
    "f5": (6, 416, 0.5),
    "f6": (7, 448, 0.5),
}


def vit(size: str = "b/16", image: int = 224, classes: int = 1000) -> ViTConfig:
    """A vision transformer with class token and learned places."""
    depth, width, heads, patch = pick(VIT, size, "ViT")
    return ViTConfig(
        image=image, patch=patch, classes=classes, width=width, depth=depth, block=_block(heads, 4 * width)
    )


def mae(size: str = "b/16", image: int = 224) -> MAEConfig:
    """A masked autoencoder around a ViT of this size, with fixed places and the paper's decoder."""
    encoder = vit(size, image, classes=0).but({"places": "sines", "pool": "mean"})
    return MAEConfig(encoder=encoder, block=_block(16, 2048))


def convnext(size: str = "t", image: int = 224, classes: int = 1000) -> ConvNeXtConfig:
    blocks, widths = pick(CONVNEXT, size, "ConvNeXt")
    return ConvNeXtConfig(image=image, classes=classes, blocks=blocks, widths=widths)


def resnet(size: str = "50", image: int = 224, classes: int = 1000) -> ResNetConfig:
    return ResNetConfig(image=image, classes=classes, blocks=pick(RESNET, size, "ResNet"))


def nfnet(size: str = "f0", image: int | None = None, classes: int = 1000) -> NFNetConfig:
    """With the regularisation that the paper trains it with."""
    times, side, dropout = pick(NFNET, size, "NFNet")
    blocks = tuple(times * depth for depth in (1, 2, 6, 3))
    return NFNetConfig(image=image or side, classes=classes, blocks=blocks, dropout=dropout, drop_path=0.25)


def _block(heads: int, ffn: int, eps: float = 1e-6) -> BlockConfig:
    return BlockConfig(
        norm=LayerNormConfig(eps=eps),
        mixer=AttentionConfig(heads=heads, causal=False, bias=True, out_bias=True),
        ffn=MLPConfig(width=ffn, activation="gelu"),
    )
