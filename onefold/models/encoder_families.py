"""The published encoders as data: each function returns the config of one size of a family.

Sources: BERT (arXiv 1810.04805), RoBERTa (1907.11692), ALBERT (1909.11942), MiniLM (2002.10957) and ESM-1b (Rives et
al. 2021, 2020.12.15.422761 for its contacts), each with the settings of the released files. Exact parameter counts are
tested.
"""

from onefold.models.embed import EmbedConfig, TokenDropoutConfig
from onefold.models.encoder import EncoderConfig, MaskedHeadConfig
from onefold.models.families import pick
from onefold.models.transformer import BlockConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.position import LearnedPositionConfig

# layers, width, heads
BERT = {"base": (12, 768, 12), "large": (24, 1024, 16)}
MINILM = {"l6": (6, 384, 12), "l12": (12, 384, 12)}

# layers, width, heads, feed-forward
ALBERT = {
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
    "xlarge": (24, 2048, 16, 8192),
    "xxlarge": (12, 4096, 64, 16384),
}


def bert(size: str = "base") -> EncoderConfig:
    """Norms behind each sum, learned positions and two sentence types; with both heads of its pre-training.

    Without the classifier of sentence pairs: `.but({"pooler": False, "classes": 0})`; the trunk and its pooler:
    `.but({"masked": None, "classes": 0})`.
    """
    depth, width, heads = pick(BERT, size, "BERT")
    norm = LayerNormConfig(eps=1e-12)
    return EncoderConfig(
        vocab=30522,
        width=width,
        depth=depth,
        context=512,
        embed=EmbedConfig(position=LearnedPositionConfig(context=512), types=2, norm=norm, dropout=0.1),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=heads, causal=False, bias=True, out_bias=True, dropout=0.1),
            ffn=MLPConfig(width=4 * width),
            residual="post",
            dropout=0.1,
        ),
        pooler=True,
        masked=MaskedHeadConfig(norm=norm),
        classes=2,
        dropout=0.1,
    )


def roberta(size: str = "base") -> EncoderConfig:
    """BERT with a byte-level vocabulary and no sentence pairs. The last two of its 514 positions are never used."""
    pick(BERT, size, "RoBERTa")
    return bert(size).but(
        {
            "vocab": 50265,
            "embed.position.context": 514,
            "embed.types": 1,
            **dict.fromkeys(("embed.norm.eps", "block.norm.eps", "masked.norm.eps"), 1e-5),
            "pooler": False,
            "classes": 0,
        }
    )


def albert(size: str = "base") -> EncoderConfig:
    """BERT with one layer applied again and again, and a narrow embedding; its second version, without dropout."""
    depth, width, heads, ffn = pick(ALBERT, size, "ALBERT")
    return bert().but(
        {
            "vocab": 30000,
            "width": width,
            "depth": depth,
            "embed": {"width": 128, "dropout": 0.0},
            "block": {"dropout": 0.0, "mixer": {"heads": heads, "dropout": 0.0}},
            "block.ffn": {"width": ffn, "activation": "gelu_tanh"},
            "groups": 1,
            "masked.activation": "gelu_tanh",
        }
    )


def minilm(size: str = "l6") -> EncoderConfig:
    """A narrow BERT, distilled; the trunk of most small embedding models."""
    depth, width, heads = pick(MINILM, size, "MiniLM")
    shape = {"width": width, "depth": depth, "block.mixer.heads": heads, "block.ffn.width": 4 * width}
    return bert().but({**shape, "masked": None, "classes": 0})


def esm1b() -> EncoderConfig:
    """Proteins, a token an amino acid: norms before each branch and of the embedding, token dropout, contacts.

    33 tokens, of which 32 is the mask; the last two of its 1026 positions are never used.
    """
    norm = LayerNormConfig(eps=1e-5)
    return EncoderConfig(
        vocab=33,
        width=1280,
        depth=33,
        context=1024,
        embed=EmbedConfig(
            position=LearnedPositionConfig(context=1026), norm=norm, token_dropout=TokenDropoutConfig(mask=32)
        ),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=20, causal=False, bias=True, out_bias=True),
            ffn=MLPConfig(width=5120),
        ),
        norm=norm,
        masked=MaskedHeadConfig(norm=norm),
        contacts=True,
    )
