"""The published families; of decoders, what their config.json says, as our config and back, and their tables of names.

Sources: the configuration and modelling files of Hugging Face transformers. Where config.json is silent, its class's
default holds, which is not always what the published files say.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onefold.core.errors import UserError
from onefold.interop.families.encoders import ENCODERS
from onefold.interop.families.family import THEIR_ACTIVATION, Family, Keys, need
from onefold.interop.families.rope import read_rope, write_rope
from onefold.interop.families.seq2seq import SEQ2SEQ
from onefold.interop.table import GateUp, HeadByHead, QueryKeyValue, Row, Stacked, Table, TableOf, Transposed
from onefold.models.embed import EmbedConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.norm import LayerNormConfig, RMSNormConfig
from onefold.nn.position import LearnedPositionConfig, RotaryConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import TopKConfig

# --- GPT-2 ---------------------------------------------------------------------------------------------------------


def _read_gpt2(keys: Keys) -> DecoderConfig:
    keys.must_be("scale_attn_weights", True)
    keys.must_be("scale_attn_by_inverse_layer_idx", False)
    keys.must_be("add_cross_attention", False)
    width, heads = keys.number("n_embd", 768), keys.number("n_head", 12)
    context = keys.number("n_positions", 1024)
    norm = LayerNormConfig(eps=keys.get("layer_norm_epsilon", 1e-5))
    return DecoderConfig(
        vocab=keys.number("vocab_size", 50257),
        width=width,
        depth=keys.number("n_layer", 12),
        context=context,
        embed=EmbedConfig(position=LearnedPositionConfig(context=context), dropout=keys.get("embd_pdrop", 0.1)),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=heads, bias=True, out_bias=True, dropout=keys.get("attn_pdrop", 0.1)),
            ffn=MLPConfig(
                width=keys.get("n_inner") or 4 * width, activation=keys.activation("activation_function", "gelu_new")
            ),
            dropout=keys.get("resid_pdrop", 0.1),
        ),
        norm=norm,
        tied=keys.get("tie_word_embeddings", True),
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    block = config.block
    return {
        "vocab_size": config.vocab,
        "n_positions": need(config.embed.position, LearnedPositionConfig).context,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": block.mixer.heads,
        "n_inner": block.ffn.width,
        "activation_function": THEIR_ACTIVATION[block.ffn.activation],
        "layer_norm_epsilon": config.norm.eps,
        "embd_pdrop": config.embed.dropout,
        "attn_pdrop": block.mixer.dropout,
        "resid_pdrop": block.dropout,
        "tie_word_embeddings": config.tied,
    }


_GPT2 = Table(
    rows=(
        Row("embed.token", ("transformer.wte",)),
        Row("embed.position", ("transformer.wpe",)),
        Row("blocks.{i}.mixer_norm", ("transformer.h.{i}.ln_1",)),
        Row("blocks.{i}.mixer.qkv", ("transformer.h.{i}.attn.c_attn",), Transposed()),
        Row("blocks.{i}.mixer.out", ("transformer.h.{i}.attn.c_proj",), Transposed()),
        Row("blocks.{i}.ffn_norm", ("transformer.h.{i}.ln_2",)),
        Row("blocks.{i}.ffn.up", ("transformer.h.{i}.mlp.c_fc",), Transposed()),
        Row("blocks.{i}.ffn.out", ("transformer.h.{i}.mlp.c_proj",), Transposed()),
        Row("norm", ("transformer.ln_f",)),
        Row("unembed", ("lm_head",)),
    ),
    ignorable=(r".*\.attn\.(masked_)?bias",),  # causal masks that old versions stored
    prefix="transformer.",
)


# --- GPT-NeoX ------------------------------------------------------------------------------------------------------


def _read_neox(keys: Keys) -> DecoderConfig:
    norm = LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-5))
    bias = keys.get("attention_bias", True)
    rope = read_rope(keys, theta="rotary_emb_base", fraction="rotary_pct", default_fraction=0.25)
    dropout = keys.get("hidden_dropout", 0.0)
    mixer = AttentionConfig(
        heads=keys.number("num_attention_heads", 64), position=rope, bias=bias, out_bias=bias,
        dropout=keys.get("attention_dropout", 0.0),
    )  # fmt: skip
    return DecoderConfig(
        vocab=keys.number("vocab_size", 50432),
        width=keys.number("hidden_size", 6144),
        depth=keys.number("num_hidden_layers", 44),
        context=keys.number("max_position_embeddings", 2048),
        embed=EmbedConfig(dropout=dropout),
        block=BlockConfig(
            norm=norm,
            mixer=mixer,
            ffn=MLPConfig(
                width=keys.number("intermediate_size", 24576), activation=keys.activation("hidden_act", "gelu")
            ),
            residual="parallel" if keys.get("use_parallel_residual", True) else "pre",
            dropout=dropout,
        ),
        norm=norm,
        tied=keys.get("tie_word_embeddings", False),
    )


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
    block = config.block
    rotary = need(block.mixer.position, RotaryConfig)
    rope = write_rope(rotary)
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": block.mixer.heads,
        "intermediate_size": block.ffn.width,
        "hidden_act": THEIR_ACTIVATION[block.ffn.activation],
        "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm.eps,
        "use_parallel_residual": block.residual == "parallel",
        "attention_bias": block.mixer.bias,
        "attention_dropout": block.mixer.dropout,
        "hidden_dropout": block.dropout,
        "rotary_emb_base": rope.pop("rope_theta"),
        "rotary_pct": rotary.fraction,
        **rope,
        "tie_word_embeddings": config.tied,
    }


_NEOX = Table(
    rows=(
        Row("embed.token", ("gpt_neox.embed_in",)),
        Row("blocks.{i}.mixer_norm", ("gpt_neox.layers.{i}.input_layernorm",)),
        Row("blocks.{i}.mixer.qkv", ("gpt_neox.layers.{i}.attention.query_key_value",), HeadByHead()),
        Row("blocks.{i}.mixer.out", ("gpt_neox.layers.{i}.attention.dense",)),
        Row("blocks.{i}.ffn_norm", ("gpt_neox.layers.{i}.post_attention_layernorm",)),
        Row("blocks.{i}.ffn.up", ("gpt_neox.layers.{i}.mlp.dense_h_to_4h",)),
        Row("blocks.{i}.ffn.out", ("gpt_neox.layers.{i}.mlp.dense_4h_to_h",)),
        Row("norm", ("gpt_neox.final_layer_norm",)),
        Row("unembed", ("embed_out",)),
    ),
    ignorable=(r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
    prefix="gpt_neox.",
    renamed=((r"^lm_head\.", "embed_out."),),  # its name in memory, in newer versions
)


# --- Llama and its kin: Mistral has windows, Qwen 2 biases on queries, keys and values, Qwen 3 normed heads ----------


def _read_llama_like(keys: Keys, model: str) -> DecoderConfig:
    qwen = model in ("qwen2", "qwen3")
    keys.must_be("use_qk_norm", False)
    width, depth = keys.number("hidden_size", 4096), keys.number("num_hidden_layers", 32)
    heads, eps = keys.number("num_attention_heads", 32), keys.get("rms_norm_eps", 1e-6)
    kv_heads = keys.get("num_key_value_heads", 8 if model == "mistral" else 32 if qwen else None)
    head_width = keys.get("head_dim", 128 if model == "qwen3" else None)
    bias = model == "qwen2" or (model != "mistral" and keys.get("attention_bias", False))
    window, pattern = _windows(keys, depth) if qwen else (None, ())
    if model == "mistral":
        window = keys.get("sliding_window", 4096)
    norm = RMSNormConfig(eps=eps)
    return DecoderConfig(
        vocab=keys.number("vocab_size", 151936 if qwen else 32000),
        width=width,
        depth=depth,
        context=keys.number("max_position_embeddings", {"llama": 2048, "mistral": 131072}.get(model, 32768)),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(
                heads=heads,
                kv_heads=kv_heads if kv_heads != heads else None,
                head_width=head_width if head_width and head_width * heads != width else None,
                window=window,
                position=read_rope(keys),
                bias=bias,
                out_bias=bias and model != "qwen2",
                qk_norm=norm if model == "qwen3" else None,
                dropout=keys.get("attention_dropout", 0.0),
            ),
            ffn=GatedMLPConfig(
                width=keys.number("intermediate_size", {"llama": 11008, "mistral": 14336}.get(model, 22016)),
                activation=keys.activation("hidden_act", "silu"),
                bias=model == "llama" and keys.get("mlp_bias", False),
            ),
        ),
        pattern=pattern,
        norm=norm,
        tied=keys.get("tie_word_embeddings", False),
    )


def _windows(keys: Keys, depth: int) -> tuple[int | None, tuple[dict[str, Any], ...]]:
    """Qwen's window and the layers it holds for: (window, pattern)."""
    window = keys.get("sliding_window", 4096) if keys.get("use_sliding_window", False) else None
    first = keys.get("max_window_layers", 28)
    kinds = keys.get("layer_types") or [
        "sliding_attention" if window and i >= first else "full_attention" for i in range(depth)
    ]
    if len(kinds) != depth or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise UserError(f"{keys.where}: layer_types must name full_attention or sliding_attention for {depth} layers")
    sliding = [kind == "sliding_attention" and window is not None for kind in kinds]
    if all(sliding) or not any(sliding):
        return (window if sliding[0] else None), ()
    return None, tuple({"mixer.window": window} if slides else {} for slides in sliding)


def _write_llama_like(config: DecoderConfig, model: str) -> dict[str, Any]:
    blocks = config.blocks()
    block = blocks[0]
    mixer, (heads, kv_heads, head_width) = block.mixer, block.mixer.widths(config.width)
    windows = [b.mixer.window for b in blocks]
    written = {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": block.ffn.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "hidden_act": THEIR_ACTIVATION[block.ffn.activation],
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        **write_rope(need(mixer.position, RotaryConfig)),
        "attention_dropout": mixer.dropout,
        "tie_word_embeddings": config.tied,
    }
    if model in ("llama", "qwen3"):
        written["attention_bias"] = mixer.bias
    if model == "llama":
        written["mlp_bias"] = block.ffn.bias
    if model == "mistral":
        written["sliding_window"] = windows[0]
    elif model != "llama":
        written |= {
            "use_sliding_window": any(windows),
            "sliding_window": next(filter(None, windows), None),
            "max_window_layers": next((i for i, w in enumerate(windows) if w), config.depth),
            "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
        }
    return written


_LLAMA = Table(
    rows=(
        Row("embed.token", ("model.embed_tokens",)),
        Row("blocks.{i}.mixer_norm", ("model.layers.{i}.input_layernorm",)),
        Row("blocks.{i}.mixer.qkv", tuple(f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"), QueryKeyValue()),
        Row("blocks.{i}.mixer.q_norm", ("model.layers.{i}.self_attn.q_norm",)),
        Row("blocks.{i}.mixer.k_norm", ("model.layers.{i}.self_attn.k_norm",)),
        Row("blocks.{i}.mixer.out", ("model.layers.{i}.self_attn.o_proj",)),
        Row("blocks.{i}.ffn_norm", ("model.layers.{i}.post_attention_layernorm",)),
        Row("blocks.{i}.ffn.gate_up", ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"), GateUp()),
        Row("blocks.{i}.ffn.out", ("model.layers.{i}.mlp.down_proj",)),
        Row("norm", ("model.norm",)),
        Row("unembed", ("lm_head",)),
    ),
    ignorable=(r".*rotary_emb\.inv_freq",),
    prefix="model.",
)


def _llama_like(model: str, architecture: str) -> Family:
    return Family(
        model, architecture, _LLAMA,
        read=lambda keys: _read_llama_like(keys, model), write=lambda config: _write_llama_like(config, model),
    )  # fmt: skip


# --- Mixtral: a Mistral whose feed-forward layers are experts ---------------------------------------------------------

_MIXTRAL_DEFAULTS = {
    "rms_norm_eps": 1e-5, "sliding_window": None, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
}  # fmt: skip


def _read_mixtral(keys: Keys) -> DecoderConfig:
    known = Keys({**_MIXTRAL_DEFAULTS, **keys.data}, keys.where, keys.tensors)
    dense, k = _read_llama_like(known, "mistral"), known.number("num_experts_per_tok")
    router = TopKConfig(
        k=k,
        balance=known.get("router_aux_loss_coef") * k,  # their loss is k times ours: nn/sparse/routing.py
        jitter=known.get("router_jitter_noise"),
    )
    known.get("output_router_logits")  # whether their training sees that loss at all
    ffn = ExpertsConfig(experts=known.number("num_local_experts"), expert=dense.block.ffn, router=router)
    keys.used |= known.used
    return dense.but({"block.ffn": ffn})


def _write_mixtral(config: DecoderConfig) -> dict[str, Any]:
    ffn = need(config.block.ffn, ExpertsConfig)
    router = need(ffn.router, TopKConfig)
    return _write_llama_like(config.but({"block.ffn": ffn.expert}), "mistral") | {
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": router.k,
        "router_aux_loss_coef": router.balance / router.k,
        "router_jitter_noise": router.jitter,
    }


def _mixtral(config: DecoderConfig) -> Table:
    ours, theirs = "blocks.{i}.ffn", "model.layers.{i}.block_sparse_moe"
    numbers = range(need(config.block.ffn, ExpertsConfig).experts)
    gate_up = tuple(f"{theirs}.experts.{e}.{part}" for e in numbers for part in ("w1", "w3"))
    rows = (
        *_LLAMA.rows,
        Row(f"{ours}.router", (f"{theirs}.gate",)),
        Row(f"{ours}.experts.gate_up", gate_up, Stacked(2)),
        Row(f"{ours}.experts.out", tuple(f"{theirs}.experts.{e}.w2" for e in numbers), Stacked()),
    )
    return replace(_LLAMA, rows=rows)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _llama_like("llama", "LlamaForCausalLM"),
        _llama_like("mistral", "MistralForCausalLM"),
        _llama_like("qwen2", "Qwen2ForCausalLM"),
        _llama_like("qwen3", "Qwen3ForCausalLM"),
        Family("gpt2", "GPT2LMHeadModel", _GPT2, _read_gpt2, _write_gpt2),
        Family("gpt_neox", "GPTNeoXForCausalLM", _NEOX, _read_neox, _write_neox),
        Family("mixtral", "MixtralForCausalLM", TableOf(_mixtral), _read_mixtral, _write_mixtral),
        *ENCODERS,
        *SEQ2SEQ,
    )
}
