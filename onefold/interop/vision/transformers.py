"""Vision transformers and masked autoencoders in published files.

Sources: the configuration and modelling files of Hugging Face transformers, and timm's vision_transformer.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from onefold.core.errors import UserError
from onefold.interop.families.family import THEIR_ACTIVATION, Keys, labels, need
from onefold.interop.names import Convolution, Joined, Names, Row, Squeezed
from onefold.interop.vision.format import Format, classes, finish, of_type, square, timm_folder
from onefold.models.transformer import BlockConfig
from onefold.models.vision.mae import MAEConfig
from onefold.models.vision.sizes import VIT
from onefold.models.vision.vit import ViTConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig

_FIRST = Squeezed((0,))


def _block(heads: int, ffn: int, norm: LayerNormConfig, **settings: Any) -> BlockConfig:
    mixer = {name: settings.pop(name) for name in ("bias", "attention_dropout") if name in settings}
    activation = settings.pop("activation", "gelu")
    return BlockConfig(
        norm=norm,
        mixer=AttentionConfig(
            heads=heads,
            causal=False,
            bias=mixer.get("bias", True),
            out_bias=True,
            dropout=mixer.get("attention_dropout", 0.0),
        ),
        ffn=MLPConfig(width=ffn, activation=activation),
        **settings,
    )


def _plain(block: BlockConfig) -> MLPConfig:
    """The feed-forward of a block that these formats can say."""
    if not isinstance(block.norm, LayerNormConfig) or not isinstance(block.mixer, AttentionConfig):
        raise UserError("has other norms or mixers")
    return need(block.ffn, MLPConfig)


# --- Hugging Face --------------------------------------------------------------------------------------------------


def _read_encoder(keys: Keys) -> dict[str, Any]:
    norm = LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-12))
    dropout = keys.get("hidden_dropout_prob", 0.0)
    block = _block(
        keys.number("num_attention_heads", 12),
        keys.number("intermediate_size", 3072),
        norm,
        bias=keys.get("qkv_bias", True),
        attention_dropout=keys.get("attention_probs_dropout_prob", 0.0),
        activation=keys.activation("hidden_act", "gelu"),
        dropout=dropout,
    )
    return {
        "image": square(keys, "image_size", 224),
        "patch": square(keys, "patch_size", 16),
        "channels": keys.number("num_channels", 3),
        "width": keys.number("hidden_size", 768),
        "depth": keys.number("num_hidden_layers", 12),
        "block": block,
        "norm": norm,
    }


def _write_encoder(config: ViTConfig) -> dict[str, Any]:
    ffn = _plain(config.block)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.block.mixer.heads,
        "intermediate_size": ffn.width,
        "hidden_act": THEIR_ACTIVATION[ffn.activation],
        "hidden_dropout_prob": config.block.dropout,
        "attention_probs_dropout_prob": config.block.mixer.dropout,
        "layer_norm_eps": config.norm.eps,
        "image_size": config.image,
        "patch_size": config.patch,
        "num_channels": config.channels,
        "qkv_bias": config.block.mixer.bias,
    }


def _read_vit(keys: Keys) -> ViTConfig:
    for name in ("pooler_act", "pooler_output_size", "encoder_stride"):  # of parts that a classifier does not have
        keys.get(name)
    return ViTConfig(classes=classes(keys), dropout=keys.get("hidden_dropout_prob", 0.0), **_read_encoder(keys))


def _write_vit(config: ViTConfig) -> dict[str, Any]:
    architecture = "ViTForImageClassification" if config.classes else "ViTModel"
    return {
        "architectures": [architecture],
        **_write_encoder(config),
        **(labels(config.classes) if config.classes else {}),
    }


def _read_mae(keys: Keys) -> MAEConfig:
    keys.get("norm_pix_loss")  # of the objective
    encoder = ViTConfig(classes=0, places="sines", pool="mean", **_read_encoder(keys))
    changes = {
        "mixer.heads": keys.number("decoder_num_attention_heads", 16),
        "ffn.width": keys.number("decoder_intermediate_size", 2048),
    }
    return MAEConfig(
        encoder=encoder,
        width=keys.number("decoder_hidden_size", 512),
        depth=keys.number("decoder_num_hidden_layers", 8),
        block=encoder.block.but(changes),
        norm=encoder.norm,
        masked=keys.get("mask_ratio", 0.75),
    )


def _write_mae(config: MAEConfig) -> dict[str, Any]:
    return {
        "architectures": ["ViTMAEForPreTraining"],
        **_write_encoder(config.encoder),
        "decoder_num_attention_heads": config.block.mixer.heads,
        "decoder_hidden_size": config.width,
        "decoder_num_hidden_layers": config.depth,
        "decoder_intermediate_size": _plain(config.block).width,
        "mask_ratio": config.masked,
        "norm_pix_loss": True,  # as `Reconstruction` trains it
    }


def _layers(ours: str, theirs: str) -> tuple[Row, ...]:
    """The blocks of Hugging Face's vision transformers."""
    inner = f"{theirs}.attention.attention"
    return (
        Row(f"{ours}.mixer_norm.*", (f"{theirs}.layernorm_before.*",)),
        Row(f"{ours}.mixer.qkv.*", (f"{inner}.query.*", f"{inner}.key.*", f"{inner}.value.*"), Joined(3)),
        Row(f"{ours}.mixer.out.*", (f"{theirs}.attention.output.dense.*",)),
        Row(f"{ours}.ffn_norm.*", (f"{theirs}.layernorm_after.*",)),
        Row(f"{ours}.ffn.up.*", (f"{theirs}.intermediate.dense.*",)),
        Row(f"{ours}.ffn.out.*", (f"{theirs}.output.dense.*",)),
    )


def _encoder(ours: str, patch: int) -> tuple[Row, ...]:
    projection = "vit.embeddings.patch_embeddings.projection"
    return (
        Row(f"{ours}embed.class_token", ("vit.embeddings.cls_token",), Squeezed((0, 0))),
        Row(f"{ours}embed.places", ("vit.embeddings.position_embeddings",), _FIRST),
        Row(f"{ours}embed.patch.linear.weight", (f"{projection}.weight",), Convolution(patch)),
        Row(f"{ours}embed.patch.linear.bias", (f"{projection}.bias",)),
        *_layers(f"{ours}blocks.{{i}}", "vit.encoder.layer.{i}"),
        Row(f"{ours}norm.*", ("vit.layernorm.*",)),
    )


def _names_vit(config: ViTConfig) -> Names:
    rows = (*_encoder("", config.patch), Row("classifier.*", ("classifier.*",)))
    return Names(rows, ignorable=(r"vit\.pooler\..*",), prefix="vit.")


def _names_mae(config: MAEConfig) -> Names:
    rows = (
        *_encoder("encoder.", config.encoder.patch),
        Row("enter.*", ("decoder.decoder_embed.*",)),
        Row("mask", ("decoder.mask_token",), Squeezed((0, 0))),
        Row("places", ("decoder.decoder_pos_embed",), _FIRST),
        *_layers("blocks.{i}", "decoder.decoder_layers.{i}"),
        Row("norm.*", ("decoder.decoder_norm.*",)),
        Row("predict.*", ("decoder.decoder_pred.*",)),
    )
    # What some versions of transformers make of the decoder's layers when they save.
    return Names(rows, renamed=((r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),))


# --- timm ----------------------------------------------------------------------------------------------------------

_TIMM_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_TIMM = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)(?:\..*)?")
# depth, width, heads by size: patches differ in nothing else
_SHAPES = {name.partition("/")[0]: shape[:3] for name, shape in VIT.items()}


def _is_timm(data: Mapping[str, Any]) -> bool:
    return _TIMM.fullmatch(str(data.get("architecture"))) is not None


def _read_timm(keys: Keys) -> ViTConfig:
    match = _TIMM.fullmatch(keys.get("architecture"))
    if match is None:
        raise UserError(f"{keys.where}: {keys.data['architecture']} is no vision transformer that is supported")
    depth, width, heads = _SHAPES[_TIMM_SIZES[match[1]]]
    width = keys.number("embed_dim", width)
    pool = keys.get("global_pool", "token")
    if pool not in ("token", "avg"):
        raise UserError(f"{keys.where}: global_pool={pool!r} is not supported (only 'token' and 'avg')")
    keys.must_be("norm_layer", None)
    norm = LayerNormConfig(eps=1e-6)
    after = keys.get("fc_norm")
    config = ViTConfig(
        image=square(keys, "img_size", 224),
        patch=square(keys, "patch_size", int(match[2])),
        channels=keys.number("in_chans", 3),
        classes=keys.get("num_classes", 1000),
        width=width,
        depth=keys.number("depth", depth),
        block=_block(
            keys.number("num_heads", heads),
            int(width * keys.get("mlp_ratio", 4.0)),
            norm,
            bias=keys.get("qkv_bias", True),
            attention_dropout=keys.get("attn_drop_rate", 0.0),
            dropout=keys.get("proj_drop_rate", 0.0),
            layer_scale=keys.get("init_values"),
        ),
        norm=norm,
        class_token=keys.get("class_token", True),
        pool="class" if pool == "token" else "mean",
        norm_pooled=pool == "avg" if after is None else after,
        dropout=keys.get("pos_drop_rate", 0.0),
        drop_path=keys.get("drop_path_rate"),
    )
    finish(keys)
    return config


def _write_timm(config: ViTConfig) -> dict[str, Any]:
    ffn = _plain(config.block)
    if ffn.activation != "gelu" or config.places != "learned":
        raise UserError("has another activation, or fixed places")
    shape = (config.depth, config.width, config.block.mixer.heads)
    size = next((name for name, short in _TIMM_SIZES.items() if _SHAPES[short] == shape), "base")
    arguments = {
        **{"img_size": config.image, "patch_size": config.patch, "in_chans": config.channels},
        **{"embed_dim": config.width, "depth": config.depth, "num_heads": config.block.mixer.heads},
        **{"mlp_ratio": ffn.width / config.width, "qkv_bias": config.block.mixer.bias},
        **{"class_token": config.class_token, "global_pool": "token" if config.pool == "class" else "avg"},
        **{"fc_norm": config.norm_pooled, "init_values": config.block.layer_scale},
        **{"attn_drop_rate": config.block.mixer.dropout, "proj_drop_rate": config.block.dropout},
        "pos_drop_rate": config.dropout,
    }
    return timm_folder(f"vit_{size}_patch16_224", config, arguments)


def _names_timm(config: ViTConfig) -> Names:
    rows = (
        Row("embed.class_token", ("cls_token",), Squeezed((0, 0))),
        Row("embed.places", ("pos_embed",), _FIRST),
        Row("embed.patch.linear.weight", ("patch_embed.proj.weight",), Convolution(config.patch)),
        Row("embed.patch.linear.bias", ("patch_embed.proj.bias",)),
        Row("blocks.{i}.mixer_norm.*", ("blocks.{i}.norm1.*",)),
        Row("blocks.{i}.mixer.qkv.*", ("blocks.{i}.attn.qkv.*",)),
        Row("blocks.{i}.mixer.out.*", ("blocks.{i}.attn.proj.*",)),
        Row("blocks.{i}.mixer_scale", ("blocks.{i}.ls1.gamma",)),
        Row("blocks.{i}.ffn_norm.*", ("blocks.{i}.norm2.*",)),
        Row("blocks.{i}.ffn.up.*", ("blocks.{i}.mlp.fc1.*",)),
        Row("blocks.{i}.ffn.out.*", ("blocks.{i}.mlp.fc2.*",)),
        Row("blocks.{i}.ffn_scale", ("blocks.{i}.ls2.gamma",)),
        Row("norm.*", ("fc_norm.*" if config.norm_pooled else "norm.*",)),
        Row("classifier.*", ("head.*",)),
    )
    return Names(rows)


FORMATS = (
    Format("huggingface", "vit", "vit", of_type("vit"), _read_vit, _write_vit, _names_vit),
    Format("huggingface", "vit_mae", "mae", of_type("vit_mae"), _read_mae, _write_mae, _names_mae),
    Format("timm", "vit", "vit", _is_timm, _read_timm, _write_timm, _names_timm),
)
