"""The published encoders: what their config.json says, as our config and back, and their tables of names.

Sources: the configuration and modelling files of Hugging Face transformers. Their RoBERTa and ESM count positions from
behind the id of the padding token; here all begin at 0, and the vectors that no text ever uses move to the end.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.families.family import THEIR_ACTIVATION, Family, Keys, labels, need
from onefold.interop.families.rope import read_rope
from onefold.interop.names import Joined, Names, Row
from onefold.interop.table import Heads, Reading
from onefold.models.embed import EmbedConfig, TokenDropoutConfig
from onefold.models.encoder import EncoderConfig, MaskedHeadConfig
from onefold.models.transformer import BlockConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.position import LearnedPositionConfig, RotaryConfig

Shape = tuple[int, int, float]  # heads, width of the feed-forward, dropout
TASKS = {"SequenceClassification": "sequence", "TokenClassification": "token", "QuestionAnswering": "span"}
_PAIRED = ("Bert", "Albert")  # are pre-trained with a head for pairs of passages, too
# Heads that a file may have beside those of the class that it names, and what says nothing.
_UNUSED = (
    r"(\w+\.)?(pooler|cls|lm_head|predictions|sop_classifier)\..*",
    r".*embeddings\.(position_ids|token_type_ids)",
    r".*rotary_embeddings\.inv_freq",
)
_OLD = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


@dataclass(frozen=True)
class Rolled:
    """Theirs has this many unused vectors first, ours last."""

    unused: int

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return parts[0].roll(-self.unused, 0)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole.roll(self.unused, 0)]


@dataclass(frozen=True)
class EncoderTable:
    """Names that depend on the heads of a model."""

    names: Callable[[EncoderConfig], Names]

    def read(self, config: EncoderConfig, names: Iterable[str], source: Mapping[str, Tensor], where: str) -> Reading:
        return self.names(config).read(names, source, where)

    def write(self, config: EncoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = self.names(config)
        written = names.write(weights)
        if config.masked is None and not config.classes:  # a trunk is saved without its family's prefix
            written = {name.removeprefix(names.prefix): tensor for name, tensor in written.items()}
        return written


# --- Heads, by the class that a file names -------------------------------------------------------------------------


def _read_heads(keys: Keys, masked: MaskedHeadConfig) -> dict[str, Any]:
    """What stands on the trunk; told by the tensors where config.json names no class."""
    named = next(iter(keys.get("architectures") or []), None)
    if named is None:
        named = "ForMaskedLM" if keys.holds(r"\bpredictions\.|lm_head\.", False) else "Model"
    head = named.partition("For")[2]
    paired = keys.holds("seq_relationship|sop_classifier", False)
    if head == "MaskedLM" and paired:
        head = "PreTraining"  # as the first files of BERT are, whatever they say
    if head in ("", "MaskedLM"):
        pooler = not head and keys.get("add_pooling_layer", keys.holds(r"pooler\.", True))
        return {"masked": masked if head else None, "pooler": pooler}
    if head == "PreTraining" and (paired or named.startswith(_PAIRED)):
        return {"masked": masked, "pooler": True, "classes": 2}
    if head not in TASKS:
        known = ", ".join(f"For{name}" for name in ("MaskedLM", "PreTraining", *TASKS))
        raise UserError(f"{keys.where}: the class {named} is not supported; supported are Model, {known}")
    given = keys.get("id2label")
    classes = keys.get("num_labels", len(given) if isinstance(given, Mapping) else 2)  # older files have both
    return {"masked": None, "pooler": TASKS[head] == "sequence", "classes": classes, "task": TASKS[head]}


def _write_heads(config: EncoderConfig, name: str) -> dict[str, Any]:
    if config.masked is not None:
        if config.classes and name not in _PAIRED:
            raise UserError("has the two heads of BERT's pre-training")
        return {"architectures": [f"{name}ForPreTraining" if config.classes else f"{name}ForMaskedLM"]}
    if not config.classes:
        return {"architectures": [f"{name}Model"]} | ({} if config.pooler else {"add_pooling_layer": False})
    head = next(head for head, task in TASKS.items() if task == config.task)
    return {"architectures": [f"{name}For{head}"], **labels(config.classes)}


def _head_rows(config: EncoderConfig, transform: str, norm: str, bias: str, relation: str, inner: bool) -> list[Row]:
    """`relation`: the classifier of pre-training. `inner`: that of texts has the pooler inside."""
    rows = [Row("transform.dense.*", (f"{transform}dense.*",)), Row("transform.norm.*", (f"{transform}{norm}.*",))]
    rows.append(Row("unembed.bias", (bias,)))
    classifier = "classifier"
    if config.masked is not None:
        classifier = relation
    elif config.task == "span":
        classifier = "qa_outputs"
    elif inner and config.classes and config.task == "sequence":
        classifier = "classifier.out_proj"
        rows.append(Row("pooler.*", ("classifier.dense.*",)))
    return [*rows, Row("classifier.*", (f"{classifier}.*",))]


# --- What all share ------------------------------------------------------------------------------------------------


def _read_block(
    keys: Keys, activation: str, residual: str, norm: LayerNormConfig, defaults: Shape = (12, 3072, 0.1)
) -> BlockConfig:
    heads, ffn, dropout = defaults
    for name in ("is_decoder", "add_cross_attention"):
        keys.must_be(name, False)
    keys.must_be("tie_word_embeddings", True)
    return BlockConfig(
        norm=norm,
        mixer=AttentionConfig(
            heads=keys.number("num_attention_heads", heads),
            causal=False,
            bias=True,
            out_bias=True,
            dropout=keys.get("attention_probs_dropout_prob", dropout),
        ),
        ffn=MLPConfig(width=keys.number("intermediate_size", ffn), activation=activation),
        residual=residual,
        dropout=keys.get("hidden_dropout_prob", dropout),
    )


def _write_trunk(config: EncoderConfig) -> dict[str, Any]:
    block = config.block
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": block.mixer.heads,
        "intermediate_size": need(block.ffn, MLPConfig).width,
        "layer_norm_eps": block.norm.eps,
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": block.mixer.dropout,
    }


def _before(keys: Keys) -> int:
    """How many positions come before those that texts use."""
    pad = keys.get("pad_token_id")
    return 2 if pad is None else pad + 1


def _unused(config: EncoderConfig) -> int:
    """Positions that no text uses."""
    position = config.embed.position
    return position.context - config.context if isinstance(position, LearnedPositionConfig) else 0


def _embed_rows(prefix: str, norm: str, unused: int) -> tuple[Row, ...]:
    theirs = f"{prefix}embeddings."
    return (
        Row("embed.token.weight", (f"{theirs}word_embeddings.weight",)),
        Row("embed.position.weight", (f"{theirs}position_embeddings.weight",), Rolled(unused)),
        Row("embed.token_type.weight", (f"{theirs}token_type_embeddings.weight",)),
        Row("embed.norm.*", (f"{theirs}{norm}.*",)),
    )


def _block_rows(theirs: str, attention: str, out: str, norms: tuple[str, str], ffn: tuple[str, str]) -> tuple[Row, ...]:
    parts = tuple(f"{theirs}{attention}{part}.*" for part in ("query", "key", "value"))
    return (
        Row("blocks.{i}.mixer.qkv.*", parts, Joined(3)),
        Row("blocks.{i}.mixer.out.*", (f"{theirs}{out}.*",)),
        Row("blocks.{i}.mixer_norm.*", (f"{theirs}{norms[0]}.*",)),
        Row("blocks.{i}.ffn.up.*", (f"{theirs}{ffn[0]}.*",)),
        Row("blocks.{i}.ffn.out.*", (f"{theirs}{ffn[1]}.*",)),
        Row("blocks.{i}.ffn_norm.*", (f"{theirs}{norms[1]}.*",)),
    )


# --- BERT and RoBERTa ----------------------------------------------------------------------------------------------


def _read_bert(keys: Keys, model: str) -> EncoderConfig:
    bert = model == "bert"
    keys.must_be("position_embedding_type", "absolute")
    norm = LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-12))
    act = keys.activation("hidden_act", "gelu")
    block = _read_block(keys, act, "post", norm)
    positions = keys.number("max_position_embeddings", 512)
    dropout = keys.get("classifier_dropout")
    return EncoderConfig(
        vocab=keys.number("vocab_size", 50265 if model == "roberta" else 30522),
        width=keys.number("hidden_size", 768),
        depth=keys.number("num_hidden_layers", 12),
        context=positions - (0 if bert else _before(keys)),
        embed=EmbedConfig(
            position=LearnedPositionConfig(context=positions),
            types=keys.number("type_vocab_size", 2),
            norm=norm,
            dropout=block.dropout,
        ),
        block=block,
        dropout=block.dropout if dropout is None else dropout,
        **_read_heads(keys, MaskedHeadConfig(activation=act if bert else "gelu", norm=norm)),
    )


def _write_bert(config: EncoderConfig, model: str, name: str) -> dict[str, Any]:
    return {
        **_write_heads(config, name),
        **_write_trunk(config),
        "max_position_embeddings": need(config.embed.position, LearnedPositionConfig).context,
        "type_vocab_size": config.embed.types,
        "hidden_act": THEIR_ACTIVATION[config.block.ffn.activation],
        "classifier_dropout": config.dropout,
        **({} if model == "bert" else {"pad_token_id": _unused(config) - 1}),
    }


_BERT_LAYER = {
    "attention": "attention.self.",
    "out": "attention.output.dense",
    "norms": ("attention.output.LayerNorm", "output.LayerNorm"),
    "ffn": ("intermediate.dense", "output.dense"),
}


def _names_bert(config: EncoderConfig) -> Names:
    predictions = "cls.predictions."
    rows = (
        *_embed_rows("bert.", "LayerNorm", 0),
        *_block_rows("bert.encoder.layer.{i}.", **_BERT_LAYER),
        *_head_rows(
            config, f"{predictions}transform.", "LayerNorm", f"{predictions}bias", "cls.seq_relationship", inner=False
        ),
        Row("pooler.*", ("bert.pooler.dense.*",)),
    )
    return Names(rows, _UNUSED, "bert.", _OLD)


def _names_roberta(config: EncoderConfig) -> Names:
    rows = (
        *_embed_rows("roberta.", "LayerNorm", _unused(config)),
        *_block_rows("roberta.encoder.layer.{i}.", **_BERT_LAYER),
        *_head_rows(config, "lm_head.", "layer_norm", "lm_head.bias", "", inner=True),
        Row("pooler.*", ("roberta.pooler.dense.*",)),
    )
    return Names(rows, _UNUSED, "roberta.", _OLD)


# --- ALBERT --------------------------------------------------------------------------------------------------------


def _read_albert(keys: Keys) -> EncoderConfig:
    keys.must_be("position_embedding_type", "absolute")
    keys.must_be("inner_group_num", 1)
    for name in ("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks", "use_bfloat16"):
        keys.get(name)  # of a first version; nothing reads them
    norm = LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-12))
    act = keys.activation("hidden_act", "gelu_new")
    block = _read_block(keys, act, "post", norm, (64, 16384, 0.0))
    context = keys.number("max_position_embeddings", 512)
    dropout = keys.get("classifier_dropout_prob", 0.1)
    return EncoderConfig(
        vocab=keys.number("vocab_size", 30000),
        width=keys.number("hidden_size", 4096),
        depth=keys.number("num_hidden_layers", 12),
        context=context,
        embed=EmbedConfig(
            position=LearnedPositionConfig(context=context),
            types=keys.number("type_vocab_size", 2),
            norm=norm,
            width=keys.number("embedding_size", 128),
            dropout=block.dropout,
        ),
        block=block,
        groups=keys.number("num_hidden_groups", 1),
        dropout=block.dropout if dropout is None else dropout,
        **_read_heads(keys, MaskedHeadConfig(activation=act, norm=norm)),
    )


def _write_albert(config: EncoderConfig) -> dict[str, Any]:
    return {
        **_write_heads(config, "Albert"),
        **_write_trunk(config),
        "embedding_size": config.embed.width,
        "max_position_embeddings": need(config.embed.position, LearnedPositionConfig).context,
        "type_vocab_size": config.embed.types,
        "num_hidden_groups": config.groups,
        "inner_group_num": 1,
        "hidden_act": THEIR_ACTIVATION[config.block.ffn.activation],
        "classifier_dropout_prob": config.dropout,
    }


def _names_albert(config: EncoderConfig) -> Names:
    norms = ("attention.LayerNorm", "full_layer_layer_norm")
    layer = "albert.encoder.albert_layer_groups.{i}.albert_layers.0."
    rows = (
        *_embed_rows("albert.", "LayerNorm", 0),
        Row("embed.project.*", ("albert.encoder.embedding_hidden_mapping_in.*",)),
        *_block_rows(layer, "attention.", "attention.dense", norms, ("ffn", "ffn_output")),
        *_head_rows(config, "predictions.", "LayerNorm", "predictions.bias", "sop_classifier.classifier", inner=False),
        Row("pooler.*", ("albert.pooler.*",)),
    )
    return Names(rows, _UNUSED, "albert.", _OLD)


# --- ESM -----------------------------------------------------------------------------------------------------------


def _read_esm(keys: Keys) -> EncoderConfig:
    keys.must_be("is_folding_model", False)
    keys.must_be("hidden_act", "gelu")
    keys.get("vocab_list"), keys.get("esmfold_config")
    norm = LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-12))
    block = _read_block(keys, "gelu", "pre", norm)
    kind = keys.get("position_embedding_type", "absolute")
    if kind not in ("absolute", "rotary"):
        raise UserError(f"{keys.where}: position_embedding_type={kind!r} is not supported (only absolute and rotary)")
    positions = keys.number("max_position_embeddings", 1026)
    if kind == "rotary":
        block = block.model_copy(update={"mixer": block.mixer.model_copy(update={"position": read_rope(keys)})})
    drops = keys.get("token_dropout", False)
    return EncoderConfig(
        vocab=keys.number("vocab_size"),
        width=keys.number("hidden_size", 768),
        depth=keys.number("num_hidden_layers", 12),
        context=positions - _before(keys),
        embed=EmbedConfig(
            position=LearnedPositionConfig(context=positions) if kind == "absolute" else None,
            norm=norm if keys.get("emb_layer_norm_before") else None,
            token_dropout=TokenDropoutConfig(mask=keys.number("mask_token_id")) if drops else None,
        ),
        block=block,
        norm=norm,
        dropout=block.dropout,
        contacts=keys.get("add_contact_head", keys.holds(r"contact_head\.", True)),
        **_read_heads(keys, MaskedHeadConfig(norm=norm)),
    )


def _write_esm(config: EncoderConfig) -> dict[str, Any]:
    drops, rotary = config.embed.token_dropout, isinstance(config.block.mixer.position, RotaryConfig)
    unused = 2 if rotary else _unused(config)
    return {
        **_write_heads(config, "Esm"),
        **_write_trunk(config),
        "max_position_embeddings": config.context + unused,
        "pad_token_id": unused - 1,
        "position_embedding_type": "rotary" if rotary else "absolute",
        **({"rope_theta": config.block.mixer.position.theta} if rotary else {}),
        "emb_layer_norm_before": config.embed.norm is not None,
        "token_dropout": drops is not None,
        **({"mask_token_id": drops.mask} if drops else {}),
        **({} if config.contacts else {"add_contact_head": False}),
    }


def _names_esm(config: EncoderConfig) -> Names:
    norms = ("attention.LayerNorm", "LayerNorm")
    ffn = ("intermediate.dense", "output.dense")
    rows = (
        *_embed_rows("esm.", "layer_norm", _unused(config)),
        *_block_rows("esm.encoder.layer.{i}.", "attention.self.", "attention.output.dense", norms, ffn),
        Row("norm.*", ("esm.encoder.emb_layer_norm_after.*",)),
        *_head_rows(config, "lm_head.", "layer_norm", "lm_head.bias", "", inner=True),
        Row("pooler.*", ("esm.pooler.dense.*",)),
        Row("regression.*", ("esm.contact_head.regression.*",)),
    )
    unused = _UNUSED if config.embed.position else (*_UNUSED, r".*\.position_embeddings\.weight")
    return Names(rows, unused, "esm.", _OLD)


def _bert_like(model: str, name: str, names: Callable[[EncoderConfig], Names]) -> Family:
    return Family(
        model, f"{name}Model", EncoderTable(names),
        read=lambda keys: _read_bert(keys, model), write=lambda config: _write_bert(config, model, name),
    )  # fmt: skip


ENCODERS: tuple[Family, ...] = (
    _bert_like("bert", "Bert", _names_bert),
    _bert_like("roberta", "Roberta", _names_roberta),
    _bert_like("xlm-roberta", "XLMRoberta", _names_roberta),
    Family("albert", "AlbertModel", EncoderTable(_names_albert), _read_albert, _write_albert),
    Family("esm", "EsmModel", EncoderTable(_names_esm), _read_esm, _write_esm),
)


def class_names(data: Mapping[str, Any], config: Any) -> list[str] | None:
    """What a config.json calls the classes of a classifier; None where it has no names for them."""
    given, classes = data.get("id2label"), getattr(config, "classes", 0)
    if not isinstance(given, Mapping) or len(given) != classes:
        return None
    names = [str(given.get(str(i))) for i in range(classes)]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
