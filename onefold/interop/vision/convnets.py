"""Convolutional networks in published files.

Sources: the configuration and modelling files of Hugging Face transformers, and timm's convnext.py, nfnet.py and
resnet.py (whose names are torchvision's).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from onefold.core.errors import UserError
from onefold.interop.families.family import THEIR_ACTIVATION, Keys, labels
from onefold.interop.names import Convolution, Names, Row, Scalar, Squeezed
from onefold.interop.vision.format import Format, classes, finish, of_type, square, timm_folder
from onefold.models.vision.convnext import ConvNeXtConfig
from onefold.models.vision.nfnet import NFNetConfig
from onefold.models.vision.resnet import ResNetConfig
from onefold.models.vision.sizes import CONVNEXT, NFNET, RESNET, nfnet
from onefold.nn.norm import LayerNormConfig


def _named(pattern: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a timm config.json has an architecture of this name, with or without a tag."""
    compiled = re.compile(rf"(?:{pattern})(?:\..*)?")
    return lambda data: compiled.fullmatch(str(data.get("architecture"))) is not None


def _size(keys: Keys, prefix: str) -> str:
    return str(keys.get("architecture")).partition(".")[0].removeprefix(prefix)


# --- ConvNeXt ------------------------------------------------------------------------------------------------------


def _read_convnext(keys: Keys) -> ConvNeXtConfig:
    for name in ("num_stages", "stage_names", "out_features", "out_indices"):  # said by the others, or of no model
        keys.get(name)
    return ConvNeXtConfig(
        image=square(keys, "image_size", 224),
        channels=keys.number("num_channels", 3),
        classes=classes(keys),
        blocks=keys.get("depths") or CONVNEXT["t"][0],
        widths=keys.get("hidden_sizes") or CONVNEXT["t"][1],
        patch=square(keys, "patch_size", 4),
        activation=keys.activation("hidden_act", "gelu"),
        last_norm=LayerNormConfig(eps=keys.get("layer_norm_eps", 1e-12)),  # of the last alone
        layer_scale=keys.get("layer_scale_init_value", 1e-6) or None,
        drop_path=keys.get("drop_path_rate", 0.0),
    )


def _write_convnext(config: ConvNeXtConfig) -> dict[str, Any]:
    return {
        "architectures": ["ConvNextForImageClassification" if config.classes else "ConvNextModel"],
        "image_size": config.image,
        "num_channels": config.channels,
        "num_stages": len(config.blocks),
        "depths": list(config.blocks),
        "hidden_sizes": list(config.widths),
        "patch_size": config.patch,
        "hidden_act": THEIR_ACTIVATION[config.activation],
        "layer_norm_eps": config.last_norm.eps,
        "layer_scale_init_value": config.layer_scale or 0.0,
        "drop_path_rate": config.drop_path,
        **(labels(config.classes) if config.classes else {}),
    }


def _names_convnext(config: ConvNeXtConfig) -> Names:
    stage, block = "convnext.encoder.stages.{i}", "convnext.encoder.stages.{i}.layers.{j}"
    rows = (
        Row("stem.patch.linear.weight", ("convnext.embeddings.patch_embeddings.weight",), Convolution(config.patch)),
        Row("stem.patch.linear.bias", ("convnext.embeddings.patch_embeddings.bias",)),
        Row("stem.norm.*", ("convnext.embeddings.layernorm.*",)),
        Row("stages.{i}.down.norm.*", (f"{stage}.downsampling_layer.0.*",)),
        Row("stages.{i}.down.patch.linear.weight", (f"{stage}.downsampling_layer.1.weight",), Convolution(2)),
        Row("stages.{i}.down.patch.linear.bias", (f"{stage}.downsampling_layer.1.bias",)),
        Row("stages.{i}.blocks.{j}.conv.*", (f"{block}.dwconv.*",)),
        Row("stages.{i}.blocks.{j}.norm.*", (f"{block}.layernorm.*",)),
        Row("stages.{i}.blocks.{j}.ffn.up.*", (f"{block}.pwconv1.*",)),
        Row("stages.{i}.blocks.{j}.ffn.out.*", (f"{block}.pwconv2.*",)),
        Row("stages.{i}.blocks.{j}.scale", (f"{block}.layer_scale_parameter",)),
        Row("norm.*", ("convnext.layernorm.*",)),
        Row("classifier.*", ("classifier.*",)),
    )
    return Names(rows, prefix="convnext.")


_TIMM_CONVNEXT = {"tiny": "t", "small": "s", "base": "b", "large": "l", "xlarge": "xl"}


def _read_timm_convnext(keys: Keys) -> ConvNeXtConfig:
    blocks, widths = CONVNEXT[_TIMM_CONVNEXT[_size(keys, "convnext_")]]
    norm = LayerNormConfig(eps=keys.get("norm_eps") or 1e-6)
    if keys.get("patch_size", 4) == 2:
        raise UserError(f"{keys.where}: model_args.patch_size=2 is not supported")
    config = ConvNeXtConfig(
        image=square(keys, "img_size", 224),
        channels=keys.number("in_chans", 3),
        classes=keys.get("num_classes", 1000),
        blocks=keys.get("depths", blocks),
        widths=keys.get("dims", widths),
        patch=keys.number("patch_size", 4),
        kernel=keys.number("kernel_sizes", 7),
        norm=norm,
        last_norm=norm,
        layer_scale=keys.get("ls_init_value", 1e-6),
        drop_path=keys.get("drop_path_rate", 0.0),
    )
    keys.must_be("global_pool", "avg")
    finish(keys)
    return config


def _write_timm_convnext(config: ConvNeXtConfig) -> dict[str, Any]:
    if len(config.blocks) != 4 or config.patch == 2:  # after a stem of patch 2, theirs halves the first stage too
        raise UserError("has other than four stages, or a patch of 2")
    shape = (config.blocks, config.widths)
    size = next((name for name, short in _TIMM_CONVNEXT.items() if CONVNEXT[short] == shape), "tiny")
    arguments = {
        **{"in_chans": config.channels, "depths": list(config.blocks), "dims": list(config.widths)},
        **{"patch_size": config.patch, "kernel_sizes": config.kernel, "ls_init_value": config.layer_scale},
        **{"norm_eps": config.norm.eps, "drop_path_rate": config.drop_path},
    }
    return timm_folder(f"convnext_{size}", config, arguments)


def _names_timm_convnext(config: ConvNeXtConfig) -> Names:
    rows = (
        Row("stem.patch.linear.weight", ("stem.0.weight",), Convolution(config.patch)),
        Row("stem.patch.linear.bias", ("stem.0.bias",)),
        Row("stem.norm.*", ("stem.1.*",)),
        Row("stages.{i}.down.norm.*", ("stages.{i}.downsample.0.*",)),
        Row("stages.{i}.down.patch.linear.weight", ("stages.{i}.downsample.1.weight",), Convolution(2)),
        Row("stages.{i}.down.patch.linear.bias", ("stages.{i}.downsample.1.bias",)),
        Row("stages.{i}.blocks.{j}.conv.*", ("stages.{i}.blocks.{j}.conv_dw.*",)),
        Row("stages.{i}.blocks.{j}.norm.*", ("stages.{i}.blocks.{j}.norm.*",)),
        Row("stages.{i}.blocks.{j}.ffn.up.*", ("stages.{i}.blocks.{j}.mlp.fc1.*",)),
        Row("stages.{i}.blocks.{j}.ffn.out.*", ("stages.{i}.blocks.{j}.mlp.fc2.*",)),
        Row("stages.{i}.blocks.{j}.scale", ("stages.{i}.blocks.{j}.gamma",)),
        Row("norm.*", ("head.norm.*",)),
        Row("classifier.*", ("head.fc.*",)),
    )
    return Names(rows)


# --- NFNet ---------------------------------------------------------------------------------------------------------


def _read_nfnet(keys: Keys) -> NFNetConfig:
    published = nfnet(_size(keys, "dm_nfnet_"))
    config = NFNetConfig(
        image=square(keys, "img_size", published.image),
        channels=keys.number("in_chans", 3),
        classes=keys.get("num_classes", 1000),
        blocks=keys.get("depths", published.blocks),
        widths=keys.get("channels", published.widths),
        stem=keys.number("stem_chs", published.stem),
        group=keys.number("group_size", published.group),
        alpha=keys.get("alpha", published.alpha),
        dropout=keys.get("drop_rate", 0.0),
        drop_path=keys.get("drop_path_rate", 0.0),
    )
    keys.must_be("num_features", config.width)
    keys.must_be("global_pool", "avg")
    finish(keys)
    return config


def _write_nfnet(config: NFNetConfig) -> dict[str, Any]:
    size = next(
        (s for s, (times, _, _) in NFNET.items() if config.blocks == tuple(times * n for n in (1, 2, 6, 3))), "f0"
    )
    arguments = {
        **{"in_chans": config.channels, "depths": list(config.blocks), "channels": list(config.widths)},
        **{"stem_chs": config.stem, "group_size": config.group, "alpha": config.alpha},
        **{"num_features": config.width, "drop_rate": config.dropout, "drop_path_rate": config.drop_path},
    }
    return timm_folder(f"dm_nfnet_{size}", config, arguments)


def _names_nfnet(config: NFNetConfig) -> Names:
    one_by_one = Squeezed((3, 2))
    block = "stages.{i}.blocks.{j}"
    convolutions = {
        "stem.convs.{i}": "stem.conv{i1}",
        f"{block}.conv1": "stages.{i}.{j}.conv1",
        f"{block}.conv2": "stages.{i}.{j}.conv2",
        f"{block}.conv3": "stages.{i}.{j}.conv2b",
        f"{block}.conv4": "stages.{i}.{j}.conv3",
        f"{block}.shortcut": "stages.{i}.{j}.downsample.conv",
        "final": "final_conv",
    }
    rows = [Row(f"{ours}.*", (f"{theirs}.*",)) for ours, theirs in convolutions.items()]
    gains = [Row(f"{ours}.gain", (f"{theirs}.gain",), Squeezed((3, 2, 1))) for ours, theirs in convolutions.items()]
    for ours, theirs in (("narrow", "fc1"), ("widen", "fc2")):
        there = f"stages.{{i}}.{{j}}.attn_last.{theirs}"
        rows.append(Row(f"{block}.squeeze.{ours}.weight", (f"{there}.weight",), one_by_one))
        rows.append(Row(f"{block}.squeeze.{ours}.bias", (f"{there}.bias",)))
    rows.append(Row(f"{block}.gain", ("stages.{i}.{j}.skipinit_gain",), Scalar()))
    rows.append(Row("classifier.*", ("head.fc.*",)))
    return Names((*rows, *gains))


# --- ResNet --------------------------------------------------------------------------------------------------------


def _read_resnet(keys: Keys) -> ResNetConfig:
    config = ResNetConfig(
        image=square(keys, "img_size", 224),
        channels=keys.number("in_chans", 3),
        classes=keys.get("num_classes", 1000),
        blocks=keys.get("layers", RESNET[_size(keys, "resnet")]),
        widths=keys.get("channels", (64, 128, 256, 512)),
    )
    keys.must_be("global_pool", "avg")
    finish(keys)
    return config


def _write_resnet(config: ResNetConfig) -> dict[str, Any]:
    if config.stem != 64 or len(config.blocks) != 4:
        raise UserError("has another stem, or other than four stages")
    size = next((size for size, blocks in RESNET.items() if blocks == config.blocks), "50")
    arguments = {"in_chans": config.channels, "layers": list(config.blocks), "channels": list(config.widths)}
    return timm_folder(f"resnet{size}", config, arguments)


def _names_resnet(config: ResNetConfig) -> Names:
    block, theirs = "stages.{i}.blocks.{j}", "layer{i1}.{j}"
    pairs = [("stem", "conv1", "bn1"), (f"{block}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")]
    for number, part in enumerate(("narrow", "look", "widen"), 1):
        pairs.append((f"{block}.{part}", f"{theirs}.conv{number}", f"{theirs}.bn{number}"))
    rows = []
    for ours, conv, norm in pairs:
        rows += [
            Row(f"{ours}.conv.weight", (f"{conv}.weight",)),
            Row(f"{ours}.norm.*", (f"{norm}.*",)),
            Row(f"{ours}.norm.mean", (f"{norm}.running_mean",)),
            Row(f"{ours}.norm.variance", (f"{norm}.running_var",)),
        ]
    return Names((*rows, Row("classifier.*", ("fc.*",))), ignorable=(r".*\.num_batches_tracked",))


FORMATS = (
    Format(
        "huggingface", "convnext", "convnext", of_type("convnext"), _read_convnext, _write_convnext, _names_convnext
    ),
    Format(
        *("timm", "convnext", "convnext", _named(r"convnext_(tiny|small|base|large|xlarge)")),
        *(_read_timm_convnext, _write_timm_convnext, _names_timm_convnext),
    ),
    Format("timm", "dm_nfnet", "nfnet", _named(r"dm_nfnet_f[0-6]"), _read_nfnet, _write_nfnet, _names_nfnet),
    Format("timm", "resnet", "resnet", _named(r"resnet(50|101|152)"), _read_resnet, _write_resnet, _names_resnet),
)
