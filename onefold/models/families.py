"""The published decoders as data: each function returns the config of one size of a family.

Sources: GPT (Radford et al. 2018), GPT-2 (Radford et al. 2019), Pythia (arXiv 2304.01373, table 1), Llama 2
(2307.09288), Llama 3 (2407.21783), Mistral 7B (2310.06825), Mixtral (2401.04088), Qwen 2 (2407.10671) and Qwen 3
(2505.09388), each with the settings of the released files. Exact parameter counts are tested.
"""

from collections.abc import Mapping
from typing import TypeVar

from onefold.core.config import unknown_name
from onefold.core.errors import UserError
from onefold.models.embed import EmbedConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.norm import LayerNormConfig, RMSNormConfig
from onefold.nn.position import LearnedPositionConfig, Llama3Scaling, RotaryConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import TopKConfig

T = TypeVar("T")

# layers, width, heads
GPT2 = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}

# layers, width, heads, vocabulary (padded as released)
PYTHIA = {
    "14m": (6, 128, 4, 50304),
    "31m": (6, 256, 8, 50304),
    "70m": (6, 512, 8, 50304),
    "160m": (12, 768, 12, 50304),
    "410m": (24, 1024, 16, 50304),
    "1b": (16, 2048, 8, 50304),
    "1.4b": (24, 2048, 16, 50304),
    "2.8b": (32, 2560, 32, 50304),
    "6.9b": (32, 4096, 32, 50432),
    "12b": (36, 5120, 40, 50688),
}

# layers, width, heads, kv_heads, ffn
LLAMA2 = {"7b": (32, 4096, 32, 32, 11008), "13b": (40, 5120, 40, 40, 13824), "70b": (80, 8192, 64, 8, 28672)}

# layers, width, heads, kv_heads, ffn, scaling factor (0: the first release, context 8192), tied
LLAMA3 = {
    "8b": (32, 4096, 32, 8, 14336, 0, False),
    "70b": (80, 8192, 64, 8, 28672, 0, False),
    "3.1-8b": (32, 4096, 32, 8, 14336, 8, False),
    "3.1-70b": (80, 8192, 64, 8, 28672, 8, False),
    "3.2-1b": (16, 2048, 32, 8, 8192, 32, True),
    "3.2-3b": (28, 3072, 24, 8, 8192, 32, True),
}

# layers, width, heads, ffn of each of 8 experts, vocabulary, context
MIXTRAL = {"8x7b": (32, 4096, 32, 14336, 32000, 32768), "8x22b": (56, 6144, 48, 16384, 32000, 65536)}

# layers, width, heads, kv_heads, ffn, vocabulary, tied
QWEN2 = {
    "0.5b": (24, 896, 14, 2, 4864, 151936, True),
    "1.5b": (28, 1536, 12, 2, 8960, 151936, True),
    "7b": (28, 3584, 28, 4, 18944, 152064, False),
    "72b": (80, 8192, 64, 8, 29568, 152064, False),
}

# layers, width, heads, kv_heads, ffn, tied; heads are 128 wide whatever the width
QWEN3 = {
    "0.6b": (28, 1024, 16, 8, 3072, True),
    "1.7b": (28, 2048, 16, 8, 6144, True),
    "4b": (36, 2560, 32, 8, 9728, True),
    "8b": (36, 4096, 32, 8, 12288, False),
    "14b": (40, 5120, 40, 8, 17408, False),
    "32b": (64, 5120, 64, 8, 25600, False),
}


def gpt() -> DecoderConfig:
    """Learned positions, LayerNorm after each sum and none at the end, GELU by tanh, tied head."""
    return DecoderConfig(
        vocab=40478,
        width=768,
        depth=12,
        context=512,
        embed=EmbedConfig(position=LearnedPositionConfig(context=512)),
        block=BlockConfig(
            norm=LayerNormConfig(),
            mixer=AttentionConfig(heads=12, bias=True, out_bias=True),
            ffn=MLPConfig(width=3072, activation="gelu_tanh"),
            residual="post",
        ),
        norm=None,
    )


def gpt2(size: str = "small") -> DecoderConfig:
    """Learned positions, LayerNorm before each branch, GELU, tied head."""
    depth, width, heads = pick(GPT2, size, "GPT-2")
    norm = LayerNormConfig()
    return DecoderConfig(
        vocab=50257,
        width=width,
        depth=depth,
        context=1024,
        embed=EmbedConfig(position=LearnedPositionConfig(context=1024)),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=heads, bias=True, out_bias=True),
            ffn=MLPConfig(width=4 * width, activation="gelu_tanh"),
        ),
        norm=norm,
    )


def pythia(size: str = "160m") -> DecoderConfig:
    """GPT-NeoX: parallel branches, a quarter of each head rotary, untied head."""
    depth, width, heads, vocab = pick(PYTHIA, size, "Pythia")
    norm = LayerNormConfig()
    return DecoderConfig(
        vocab=vocab,
        width=width,
        depth=depth,
        context=2048,
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=heads, position=RotaryConfig(fraction=0.25), bias=True, out_bias=True),
            ffn=MLPConfig(width=4 * width),
            residual="parallel",
        ),
        norm=norm,
        tied=False,
    )


def llama2(size: str = "7b") -> DecoderConfig:
    """RMSNorm, rotary positions, SwiGLU, no biases; grouped heads at 70B."""
    depth, width, heads, kv_heads, ffn = pick(LLAMA2, size, "Llama 2")
    norm = RMSNormConfig(eps=1e-5)
    return DecoderConfig(
        vocab=32000,
        width=width,
        depth=depth,
        context=4096,
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(
                heads=heads, kv_heads=kv_heads if kv_heads != heads else None, position=RotaryConfig()
            ),
            ffn=GatedMLPConfig(width=ffn),
        ),
        norm=norm,
        tied=False,
    )


def llama3(size: str = "8b") -> DecoderConfig:
    """Llama 2 with grouped heads everywhere, a larger vocabulary and rotary base; from 3.1 on with scaled rotary."""
    depth, width, heads, kv_heads, ffn, factor, tied = pick(LLAMA3, size, "Llama 3")
    scaling = Llama3Scaling(factor=factor) if factor else None
    return llama2().but(
        {
            "vocab": 128256,
            "width": width,
            "depth": depth,
            "context": 131072 if factor else 8192,
            "block.mixer": {"heads": heads, "kv_heads": kv_heads},
            "block.mixer.position": {"theta": 500000.0, "scaling": scaling and scaling.to_dict()},
            "block.ffn.width": ffn,
            "tied": tied,
        }
    )


def mistral(size: str = "7b") -> DecoderConfig:
    """Llama with 8 key-value heads and a sliding window of 4096; "7b-v0.3" has none and three more control tokens."""
    window, vocab, theta, context = pick(
        {"7b": (4096, 32000, 1e4, 8192), "7b-v0.3": (None, 32768, 1e6, 32768)}, size, "Mistral"
    )
    return llama2().but(
        {
            "vocab": vocab,
            "context": context,
            "block.mixer": {"kv_heads": 8, "window": window},
            "block.mixer.position.theta": theta,
            "block.ffn.width": 14336,
        }
    )


def mixtral(size: str = "8x7b") -> DecoderConfig:
    """Mistral whose feed-forward layers are 8 experts, of which each token sees two; no window."""
    depth, width, heads, ffn, vocab, context = pick(MIXTRAL, size, "Mixtral")
    dense = mistral().but(
        {
            **{"depth": depth, "width": width, "vocab": vocab, "context": context},
            "block.mixer": {"heads": heads, "window": None},
            "block.mixer.position.theta": 1e6,
        }
    )
    # 0.02 in their files, of a loss that is k times this one
    router = TopKConfig(balance=0.04)
    return dense.but({"block.ffn": ExpertsConfig(experts=8, expert=GatedMLPConfig(width=ffn), router=router)})


def qwen2(size: str = "0.5b") -> DecoderConfig:
    """Llama with biases on queries, keys and values; Qwen 2.5 has the same shapes."""
    depth, width, heads, kv_heads, ffn, vocab, tied = pick(QWEN2, size, "Qwen 2")
    return llama2().but(
        {
            "vocab": vocab,
            "width": width,
            "depth": depth,
            "context": 32768,
            "block.mixer": {"heads": heads, "kv_heads": kv_heads, "bias": True},
            "block.mixer.position.theta": 1e6,
            "block.ffn.width": ffn,
            "block.norm.eps": 1e-6,
            "norm.eps": 1e-6,
            "tied": tied,
        }
    )


def qwen3(size: str = "0.6b") -> DecoderConfig:
    """Qwen 2 without biases, each query and key head normalised before it turns."""
    depth, width, heads, kv_heads, ffn, tied = pick(QWEN3, size, "Qwen 3")
    return qwen2().but(
        {
            "vocab": 151936,
            "width": width,
            "depth": depth,
            "context": 40960,
            "block.mixer": {"heads": heads, "kv_heads": kv_heads, "head_width": 128, "bias": False},
            "block.mixer.qk_norm": {"eps": 1e-6},
            "block.ffn.width": ffn,
            "tied": tied,
        }
    )


def pick(sizes: Mapping[str, T], size: str, family: str) -> T:
    if size not in sizes:
        raise UserError(f"{family}: {unknown_name(size, sizes).replace('setting', 'size')}")
    return sizes[size]
