"""The published encoder-decoders as data: each function returns the config of one size of a family.

Sources: the Transformer (arXiv 1706.03762, table 3), T5 (1910.10683), T5 1.1 (2002.05202 and its released files), BART
(1910.13461), the Switch Transformer (2101.03961) and Marian (1804.00344; the OPUS-MT checkpoints), with the settings of
the released files. Exact parameter counts are tested.
"""

from onefold.models.embed import EmbedConfig
from onefold.models.families import pick
from onefold.models.seq2seq import Seq2SeqConfig, StackConfig
from onefold.models.transformer import BlockConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import Activation, GatedMLPConfig, MLPConfig
from onefold.nn.norm import LayerNormConfig, RMSNormConfig
from onefold.nn.position import LearnedPositionConfig, RelativeBiasConfig, SinusoidalPositionConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig

# width, ffn, heads, dropout; six layers a side
TRANSFORMER = {"base": (512, 2048, 8, 0.1), "big": (1024, 4096, 16, 0.3)}

# layers a side, width, ffn, heads, head width
T5 = {
    "small": (6, 512, 2048, 8, 64),
    "base": (12, 768, 3072, 12, 64),
    "large": (24, 1024, 4096, 16, 64),
    "3b": (24, 1024, 16384, 32, 128),
    "11b": (24, 1024, 65536, 128, 128),
}
T5_V11 = {
    "small": (8, 512, 1024, 6, 64),
    "base": (12, 768, 2048, 12, 64),
    "large": (24, 1024, 2816, 16, 64),
    "xl": (24, 2048, 5120, 32, 64),
    "xxl": (24, 4096, 10240, 64, 64),
}

# layers a side, width, heads
BART = {"base": (6, 768, 12), "large": (12, 1024, 16)}


def transformer(size: str = "base") -> Seq2SeqConfig:
    """The first one: norms after each sum, sines for positions, one matrix for both embeddings and the head.

    37,000 tokens, as for English and German; its attention has no biases.
    """
    width, ffn, heads, dropout = pick(TRANSFORMER, size, "Transformer")
    return _post_norm(
        EmbedConfig(position=SinusoidalPositionConfig(), scaled=True, dropout=dropout),
        (6, width, heads, ffn, 37000, 512),
        activation="relu",
        bias=False,
        dropout=dropout,
    )


def marian() -> Seq2SeqConfig:
    """The translation models of OPUS-MT (here English to German): the first Transformer with biases, and with Swish.

    All sines come before all cosines. The padding token, the last one, begins a text.
    """
    position = SinusoidalPositionConfig(halves=True)
    config = _post_norm(
        EmbedConfig(position=position, scaled=True, dropout=0.1), (6, 512, 8, 2048, 58101, 512), "silu", dropout=0.1
    )
    return config.but({"start": 58100, "head_bias": True})


def bart(size: str = "base") -> Seq2SeqConfig:
    """The Transformer with learned positions, GELU and a norm of the embedding; texts begin with </s> and then <s>.

    The first two of its 1026 positions in the files are never used.
    """
    depth, width, heads = pick(BART, size, "BART")
    embed = EmbedConfig(position=LearnedPositionConfig(context=1026), norm=LayerNormConfig(), dropout=0.1)
    config = _post_norm(embed, (depth, width, heads, 4 * width, 50265, 1024), "gelu", dropout=0.1)
    return config.but({"start": 2, "first": 0})


def t5(size: str = "small") -> Seq2SeqConfig:
    """RMSNorm before each branch, no biases but those of distances, unscaled attention; the head tied and scaled."""
    depth, width, ffn, heads, head_width = pick(T5, size, "T5")
    norm = RMSNormConfig(eps=1e-6)
    dropout = 0.1

    def stack(causal: bool) -> StackConfig:
        plain = AttentionConfig(heads=heads, head_width=head_width, causal=False, scale=1.0, dropout=dropout)
        block = BlockConfig(
            norm=norm,
            mixer=plain.but({"causal": causal, "position": RelativeBiasConfig()}),
            cross=plain if causal else None,
            ffn=MLPConfig(width=ffn, activation="relu", bias=False),
            dropout=dropout,
        )
        return StackConfig(depth=depth, block=block, norm=norm)

    return Seq2SeqConfig(
        vocab=32128,
        width=width,
        context=512,
        embed=EmbedConfig(dropout=dropout),
        encoder=stack(causal=False),
        decoder=stack(causal=True),
        head_scaled=True,
        start=0,
    )


def t5_v11(size: str = "small") -> Seq2SeqConfig:
    """T5 with a gated GELU, a head of its own, and no dropout in pre-training."""
    depth, width, ffn, heads, head_width = pick(T5_V11, size, "T5 1.1")
    changes = {
        "depth": depth,
        "block.ffn": GatedMLPConfig(width=ffn, activation="gelu_tanh"),
        "block.mixer": {"heads": heads, "head_width": head_width, "dropout": 0.0},
        "block.dropout": 0.0,
    }
    sides = {f"{side}.{path}": value for side in ("encoder", "decoder") for path, value in changes.items()}
    cross = {"heads": heads, "head_width": head_width, "dropout": 0.0}
    head = {"tied": False, "head_scaled": False, "embed.dropout": 0.0}
    return t5().but({"width": width, "decoder.block.cross": cross, **sides, **head})


def switch(size: str = "base", experts: int = 8) -> Seq2SeqConfig:
    """T5 with experts in every other layer, of which each token sees one (arXiv 2101.03961, table 1)."""
    width = pick(T5, size, "Switch Transformer")[2]
    ffn = ExpertsConfig(
        experts=experts,
        expert=MLPConfig(width=width, activation="relu", bias=False),
        router=SwitchConfig(),
        capacity=1.25,
    ).to_dict()
    return t5(size).but({f"{side}.pattern": [{}, {"ffn": ffn}] for side in ("encoder", "decoder")})


def one_stack(config: Seq2SeqConfig) -> Seq2SeqConfig:
    """The same without its encoder: the decoder reads both texts, the first one whole (T5's prefix language model)."""
    return config.but({"encoder": None, "decoder.block.cross": None})


def _post_norm(
    embed: EmbedConfig,
    shape: tuple[int, int, int, int, int, int],  # layers a side, width, heads, ffn, vocabulary, context
    activation: Activation,
    bias: bool = True,
    dropout: float = 0.0,
) -> Seq2SeqConfig:
    depth, width, heads, ffn, vocab, context = shape

    def stack(causal: bool) -> StackConfig:
        plain = AttentionConfig(heads=heads, causal=False, bias=bias, out_bias=bias, dropout=dropout)
        block = BlockConfig(
            norm=LayerNormConfig(),
            mixer=plain.but({"causal": causal}),
            cross=plain if causal else None,
            ffn=MLPConfig(width=ffn, activation=activation),
            residual="post",
            dropout=dropout,
        )
        return StackConfig(depth=depth, block=block)

    return Seq2SeqConfig(
        vocab=vocab, width=width, context=context, embed=embed, encoder=stack(causal=False), decoder=stack(causal=True)
    )
