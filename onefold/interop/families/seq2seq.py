"""The published encoder-decoders: what their config.json says, as our config and back, and their tables of names.

Sources: the configuration and modelling files of Hugging Face transformers. Their BART begins to count positions at 2;
here they begin at 0, and the two vectors that no text ever uses move to the end.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.families.encoders import Rolled
from onefold.interop.families.family import ACTIVATIONS, THEIR_ACTIVATION, Family, Keys, need
from onefold.interop.names import Joined, Names, Row, Squeezed
from onefold.interop.table import Reading, Stacked
from onefold.models.embed import EmbedConfig
from onefold.models.seq2seq import Seq2SeqConfig, StackConfig
from onefold.models.transformer import BlockConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.norm import LayerNormConfig, RMSNormConfig
from onefold.nn.position import LearnedPositionConfig, RelativeBiasConfig, SinusoidalPositionConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig

SIDES = ("encoder", "decoder")
OFFSET = 2  # BART's first positions, which no text uses
# T5 calls the approximate GELU by the exact one's name.
_GATED = {f"gated-{theirs}": ours for theirs, ours in ACTIVATIONS.items()} | {"gated-gelu": "gelu_tanh"}
# Of generation, and of dropout that we have not: they change nothing that a trained model computes.
_SILENT = """
num_hidden_layers is_gated_act dense_act_fn initializer_factor init_std encoder_layerdrop decoder_layerdrop
activation_dropout forced_eos_token_id min_length no_repeat_ngram_size early_stopping bad_words_ids classif_dropout
extra_pos_embeddings static_position_embeddings force_bos_token_to_be_generated num_beam_groups diversity_penalty
add_bias_logits"""


@dataclass(frozen=True)
class Seq2SeqTable:
    """Names that depend on the parts of a model."""

    names: Callable[[Seq2SeqConfig], Names]

    def read(self, config: Seq2SeqConfig, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> Reading:
        return self.names(config).read(names, source, where)

    def write(self, config: Seq2SeqConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.names(config).write(weights)


def _check_class(keys: Keys, *known: str) -> None:
    named = next(iter(keys.get("architectures") or []), known[0])
    if named not in known:
        raise UserError(f"{keys.where}: the class {named} is not supported; supported are {', '.join(known)}")
    for name in _SILENT.split():
        keys.get(name)


def _start(keys: Keys, default: int | None) -> dict[str, int | None]:
    return {
        "start": keys.get("decoder_start_token_id", keys.get("pad_token_id", default)),
        "first": keys.get("forced_bos_token_id"),
    }


def _write_start(config: Seq2SeqConfig, padding: bool) -> dict[str, Any]:
    """`padding`: it is what a decoder begins with."""
    found = {"decoder_start_token_id": config.start, "forced_bos_token_id": config.first}
    found |= {"pad_token_id": config.start} if padding else {}
    return {"is_encoder_decoder": True} | {name: value for name, value in found.items() if value is not None}


# --- T5 ------------------------------------------------------------------------------------------------------------


def _read_t5(keys: Keys) -> Seq2SeqConfig:
    _check_class(keys, "T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel")
    norm = RMSNormConfig(eps=keys.get("layer_norm_epsilon", 1e-6))
    dropout = keys.get("dropout_rate", 0.1)
    spelled, ffn = keys.get("feed_forward_proj", "relu"), keys.number("d_ff", 2048)
    if spelled in _GATED:
        feedforward = GatedMLPConfig(width=ffn, activation=_GATED[spelled])
    else:
        feedforward = MLPConfig(width=ffn, activation=keys.activation("feed_forward_proj", "relu"), bias=False)
    position = RelativeBiasConfig(
        buckets=keys.number("relative_attention_num_buckets", 32),
        distance=keys.number("relative_attention_max_distance", 128),
    )
    attention = AttentionConfig(
        heads=keys.number("num_heads", 8),
        head_width=keys.number("d_kv", 64),
        causal=False,
        scale=1.0,
        dropout=dropout,
    )

    def stack(depth: int, causal: bool) -> StackConfig:
        mixer = attention.model_copy(update={"causal": causal, "position": position})
        cross = attention if causal else None
        block = BlockConfig(norm=norm, mixer=mixer, cross=cross, ffn=feedforward, dropout=dropout)
        return StackConfig(depth=depth, block=block, norm=norm)

    depth = keys.number("num_layers", 6)
    # The first version ties its head and scales what enters it; the next does neither, but files that the library
    # writes today say that it is tied, and have a head of its own all the same.
    said = keys.get("tie_word_embeddings", True)
    scaled = keys.get("scale_decoder_outputs", said)
    own = keys.holds(r"^lm_head\.", not said) and not (said and scaled)
    return Seq2SeqConfig(
        vocab=keys.number("vocab_size", 32128),
        width=keys.number("d_model", 512),
        context=keys.number("n_positions", 512),
        embed=EmbedConfig(dropout=dropout),
        encoder=stack(depth, causal=False),
        decoder=stack(keys.get("num_decoder_layers") or depth, causal=True),
        tied=not own,
        head_scaled=scaled,
        **_start(keys, 0),
    )


def _write_t5(config: Seq2SeqConfig) -> dict[str, Any]:
    block = config.decoder.block
    position = need(block.mixer.position, RelativeBiasConfig)
    gated = isinstance(block.ffn, GatedMLPConfig)
    name = (
        next(t for t, o in _GATED.items() if o == block.ffn.activation)
        if gated
        else THEIR_ACTIVATION[block.ffn.activation]
    )
    return {
        "vocab_size": config.vocab,
        "d_model": config.width,
        "d_kv": block.mixer.widths(config.width)[2],
        "d_ff": block.ffn.width,
        "num_layers": config.encoder.depth,
        "num_decoder_layers": config.decoder.depth,
        "num_heads": block.mixer.heads,
        "n_positions": config.context,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.distance,
        "dropout_rate": block.dropout,
        "layer_norm_epsilon": block.norm.eps,
        "feed_forward_proj": name,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.head_scaled,
        **_write_start(config, padding=True),
    }


def _names_t5(config: Seq2SeqConfig, ffn: str = "DenseReluDense") -> Names:
    rows = [Row("encoder.embed.token.weight", ("shared.weight",)), Row("decoder.unembed.weight", ("lm_head.weight",))]
    for side in SIDES:
        ours, theirs = f"{side}.blocks.{{i}}.", f"{side}.block.{{i}}.layer."
        last = f"{theirs}{1 if side == 'encoder' else 2}."
        rows += _attention(f"{ours}mixer", f"{theirs}0.SelfAttention.", ("q", "k", "v"), "o")
        rows += _cross(f"{ours}cross", f"{theirs}1.EncDecAttention.", ("q", "k", "v"), "o")
        rows += [
            Row(f"{ours}mixer_norm.*", (f"{theirs}0.layer_norm.*",)),
            Row(f"{ours}cross_norm.*", (f"{theirs}1.layer_norm.*",)),
            Row(f"{ours}ffn_norm.*", (f"{last}layer_norm.*",)),
            Row(f"{ours}ffn.up.*", (f"{last}{ffn}.wi.*",)),
            Row(f"{ours}ffn.gate_up.*", tuple(f"{last}{ffn}.wi_{n}.*" for n in (0, 1)), Joined(2)),
            Row(f"{ours}ffn.out.*", (f"{last}{ffn}.wo.*",)),
            Row(
                f"{side}.relative.weight",
                (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
            ),
            Row(f"{side}.norm.*", (f"{side}.final_layer_norm.*",)),
        ]
    unused = [
        r"(encoder|decoder)\.embed_tokens\.weight",  # the shared ones again
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # of a first version
    ]
    return Names(tuple(rows), (*unused, *([r"lm_head\.weight"] if config.tied else [])))


# --- Switch Transformers: T5 with experts in some layers --------------------------------------------------------------

_SWITCH_DEFAULTS = {
    **{"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 2048, "dense_act_fn": "relu", "num_experts": 8},
    **{"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3, "router_jitter_noise": 0.01},
    **{"router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001},
}
# Steps follow from numbers of layers. Experts read at most so many of a row's tokens there; here all, once trained.
_SWITCH_SILENT = "encoder_sparse_step decoder_sparse_step expert_capacity add_router_probs router_ignore_padding_tokens"


def _read_switch(keys: Keys) -> Seq2SeqConfig:
    known = Keys({**_SWITCH_DEFAULTS, **keys.data}, keys.where, keys.tensors)
    _check_class(known, "SwitchTransformersForConditionalGeneration", "SwitchTransformersModel")
    for name in _SWITCH_SILENT.split():
        known.get(name)
    known.must_be("tie_word_embeddings", True)
    known.must_be("router_bias", False)
    known.must_be("router_dtype", "float32")
    router = SwitchConfig(
        jitter=known.get("router_jitter_noise"),
        balance=known.get("router_aux_loss_coef"),
        z_loss=known.get("router_z_loss_coef"),
    )
    plain = Keys(
        {**known.data, "architectures": ["T5Model"], "feed_forward_proj": known.get("dense_act_fn")}, keys.where,
        keys.tensors,
    )  # fmt: skip
    config = _read_t5(plain)
    changes: dict[str, Any] = {}
    for side in SIDES:
        stack = getattr(config, side)
        ffn = ExpertsConfig(experts=known.number("num_experts"), expert=stack.block.ffn, router=router).to_dict()
        sparse = known.get(f"num_sparse_{side}_layers")
        if not isinstance(sparse, int) or not 0 <= sparse <= stack.depth:
            raise UserError(f"{keys.where}: num_sparse_{side}_layers must be 0 to {stack.depth}, not {sparse!r}")
        changes[f"{side}.pattern"] = [{"ffn": ffn} if i else {} for i in _sparse(stack.depth, sparse)]
    keys.used |= known.used | plain.used
    return config.but(changes)


def _sparse(depth: int, layers: int) -> list[bool]:
    """Which layers have experts where a config asks for so many: every so many-th, from the second on."""
    step = depth // layers if layers else depth
    return [i % step == 1 or step == 1 for i in range(depth)]


def _write_switch(config: Seq2SeqConfig) -> dict[str, Any]:
    changes, numbers, ffn = {}, {}, None
    for side, half in zip(SIDES, config.halves()):
        found = [block.ffn if isinstance(block.ffn, ExpertsConfig) else None for block in half.blocks()]
        ffn = next(filter(None, found), ffn)
        where = [part is not None for part in found]
        numbers[f"num_sparse_{side}_layers"] = max(n for n in range(len(where) + 1) if _sparse(len(where), n) == where)
        changes |= {f"{side}.pattern": (), f"{side}.block.ffn": need(ffn, ExpertsConfig).expert}
    router = need(need(ffn, ExpertsConfig).router, SwitchConfig)
    written = _write_t5(config.but(changes))
    if not written.pop("scale_decoder_outputs"):
        raise UserError("has a tied head, whose input is scaled down")
    return written | {
        "dense_act_fn": written.pop("feed_forward_proj"),
        **numbers,
        "num_experts": ffn.experts,
        "expert_capacity": config.context,  # of a row's tokens: all
        "router_jitter_noise": router.jitter,
        "router_aux_loss_coef": router.balance,
        "router_z_loss_coef": router.z_loss,
    }


def _names_switch(config: Seq2SeqConfig) -> Names:
    names = _names_t5(config, ffn="mlp")
    blocks = [block for half in config.halves() for block in half.blocks()]
    count = next((block.ffn.experts for block in blocks if isinstance(block.ffn, ExpertsConfig)), 0)
    rows = list(names.rows)
    for side, last in zip(SIDES, (1, 2)):
        ours, theirs = f"{side}.blocks.{{i}}.ffn.", f"{side}.block.{{i}}.layer.{last}.mlp."
        rows.append(Row(f"{ours}router.*", (f"{theirs}router.classifier.*",)))
        for our, their in (("up", "wi"), ("out", "wo")):
            each = tuple(f"{theirs}experts.expert_{e}.{their}.*" for e in range(count))
            rows.append(Row(f"{ours}experts.{our}.*", each, Stacked()))
    return replace(names, rows=tuple(rows))


# --- BART and Marian -----------------------------------------------------------------------------------------------


def _read_bart(keys: Keys, marian: bool) -> Seq2SeqConfig:
    _check_class(keys, *(("MarianMTModel", "MarianModel") if marian else ("BartForConditionalGeneration", "BartModel")))
    for name, value in {
        "tie_word_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "normalize_before": False,
        "add_final_layer_norm": False,
        "normalize_embedding": not marian,
    }.items():
        keys.must_be(name, value)
    vocab = keys.number("vocab_size", 58101 if marian else 50265)
    keys.must_be("decoder_vocab_size", vocab, None)
    norm, dropout = LayerNormConfig(), keys.get("dropout", 0.1)
    act = keys.activation("activation_function", "gelu")

    def stack(side: str) -> StackConfig:
        attention = AttentionConfig(
            heads=keys.number(f"{side}_attention_heads", 16),
            causal=False,
            bias=True,
            out_bias=True,
            dropout=keys.get("attention_dropout", 0.0),
        )
        causal = side == "decoder"
        block = BlockConfig(
            norm=norm,
            mixer=attention.model_copy(update={"causal": causal}),
            cross=attention if causal else None,
            ffn=MLPConfig(width=keys.number(f"{side}_ffn_dim", 4096), activation=act),
            residual="post",
            dropout=dropout,
        )
        return StackConfig(depth=keys.number(f"{side}_layers", 12), block=block)

    context = keys.number("max_position_embeddings", 1024)
    if marian:
        position, start = SinusoidalPositionConfig(halves=True), 58100
    else:
        position, start = LearnedPositionConfig(context=context + OFFSET), 2
    scaled = keys.get("scale_embedding", False)
    return Seq2SeqConfig(
        vocab=vocab,
        width=keys.number("d_model", 1024),
        context=context,
        embed=EmbedConfig(position=position, norm=None if marian else norm, scaled=scaled, dropout=dropout),
        encoder=stack("encoder"),
        decoder=stack("decoder"),
        head_bias=keys.holds("^final_logits_bias$", True),
        **_start(keys, start),
    )


def _write_bart(config: Seq2SeqConfig, marian: bool) -> dict[str, Any]:
    block = config.decoder.block
    if not marian and need(config.embed.position, LearnedPositionConfig).context != config.context + OFFSET:
        raise UserError("has two positions that no text uses")
    sides: dict[str, Any] = {}
    for side in SIDES:
        stack = getattr(config, side)
        sides |= {
            f"{side}_layers": stack.depth,
            f"{side}_attention_heads": stack.block.mixer.heads,
            f"{side}_ffn_dim": need(stack.block.ffn, MLPConfig).width,
        }
    return {
        "vocab_size": config.vocab,
        "d_model": config.width,
        **sides,
        "max_position_embeddings": config.context,
        "activation_function": THEIR_ACTIVATION[block.ffn.activation],
        "dropout": block.dropout,
        "attention_dropout": block.mixer.dropout,
        "scale_embedding": config.embed.scaled,
        **({"decoder_vocab_size": config.vocab} if marian else {}),
        **_write_start(config, padding=marian),
    }


def _names_bart(config: Seq2SeqConfig) -> Names:
    rows = [
        Row("encoder.embed.token.weight", ("model.shared.weight",)),
        Row("decoder.unembed.bias", ("final_logits_bias",), Squeezed((0,))),
    ]
    for side in SIDES:
        ours, theirs = f"{side}.blocks.{{i}}.", f"model.{side}.layers.{{i}}."
        rows += _attention(f"{ours}mixer", f"{theirs}self_attn.", ("q_proj", "k_proj", "v_proj"), "out_proj")
        rows += _cross(f"{ours}cross", f"{theirs}encoder_attn.", ("q_proj", "k_proj", "v_proj"), "out_proj")
        rows += [
            Row(f"{ours}mixer_norm.*", (f"{theirs}self_attn_layer_norm.*",)),
            Row(f"{ours}cross_norm.*", (f"{theirs}encoder_attn_layer_norm.*",)),
            Row(f"{ours}ffn_norm.*", (f"{theirs}final_layer_norm.*",)),
            Row(f"{ours}ffn.up.*", (f"{theirs}fc1.*",)),
            Row(f"{ours}ffn.out.*", (f"{theirs}fc2.*",)),
            Row(f"{side}.embed.position.weight", (f"model.{side}.embed_positions.weight",), Rolled(OFFSET)),
            Row(f"{side}.embed.norm.*", (f"model.{side}.layernorm_embedding.*",)),
        ]
    unused = [r"model\.(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight"]  # the shared ones again
    if isinstance(config.embed.position, SinusoidalPositionConfig):
        unused.append(r"model\.(encoder|decoder)\.embed_positions\.weight")  # are computed
    return Names(tuple(rows), tuple(unused), "model.")


def _attention(ours: str, theirs: str, parts: tuple[str, str, str], out: str) -> list[Row]:
    return [
        Row(f"{ours}.qkv.*", tuple(f"{theirs}{part}.*" for part in parts), Joined(3)),
        Row(f"{ours}.out.*", (f"{theirs}{out}.*",)),
    ]


def _cross(ours: str, theirs: str, parts: tuple[str, str, str], out: str) -> list[Row]:
    query, *others = parts
    return [
        Row(f"{ours}.q.*", (f"{theirs}{query}.*",)),
        Row(f"{ours}.kv.*", tuple(f"{theirs}{part}.*" for part in others), Joined(2)),
        Row(f"{ours}.out.*", (f"{theirs}{out}.*",)),
    ]


def _bart_like(name: str, architecture: str) -> Family:
    marian = name == "marian"
    return Family(
        name,
        architecture,
        Seq2SeqTable(_names_bart),
        read=lambda keys: _read_bart(keys, marian),
        write=lambda config: _write_bart(config, marian),
    )


SEQ2SEQ: tuple[Family, ...] = (
    Family("t5", "T5ForConditionalGeneration", Seq2SeqTable(_names_t5), _read_t5, _write_t5),
    Family(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        Seq2SeqTable(_names_switch),
        _read_switch,
        _write_switch,
    ),
    _bart_like("bart", "BartForConditionalGeneration"),
    _bart_like("marian", "MarianMTModel"),
)
