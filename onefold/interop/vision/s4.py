"""S4D's published files: pictures read pixel by pixel, as the model of the authors' example.py (state-spaces/s4).

A .pt or .pth file of tensors by name: `encoder`, `s4_layers.{i}` (`kernel.log_dt`, `kernel.log_A_real`,
`kernel.A_imag`, `kernel.C`, `D`, `output_linear.0`), `norms.{i}`, `decoder`. It has no settings: that norms come after
each layer, as there by default, cannot be seen in it, nor how large the pictures were, which any may be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.interop.loaded import Loaded, dtype_named, fill
from onefold.interop.names import Names, Row, Squeezed
from onefold.interop.table import Heads, own_weights
from onefold.interop.tensors import read_pickled, read_settings
from onefold.models.transformer import BlockConfig
from onefold.models.vision.vit import ViTConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.states.ssm import S4DConfig

_SIDES = {1: 28, 3: 32}  # of MNIST's and CIFAR's pictures, by channels


@dataclass(frozen=True)
class _OneWay:
    """Ours has an axis of directions first."""

    def read(self, parts: list[Tensor], heads: Heads) -> Tensor:
        return parts[0].unsqueeze(0)

    def write(self, whole: Tensor, heads: Heads) -> list[Tensor]:
        return [whole.squeeze(0)]


_KERNEL = "blocks.{i}.mixer.kernel."
NAMES = Names(
    (
        Row("embed.patch.linear.*", ("encoder.*",)),
        *(Row(f"{_KERNEL}{name}", (f"s4_layers.{{i}}.kernel.{name}",)) for name in ("log_dt", "log_A_real", "A_imag")),
        Row(f"{_KERNEL}C", ("s4_layers.{i}.kernel.C",), _OneWay()),
        Row(f"{_KERNEL}D", ("s4_layers.{i}.D",)),
        Row("blocks.{i}.mixer.out.weight", ("s4_layers.{i}.output_linear.0.weight",), Squeezed((2,))),
        Row("blocks.{i}.mixer.out.bias", ("s4_layers.{i}.output_linear.0.bias",)),
        Row("blocks.{i}.mixer_norm.*", ("norms.{i}.*",)),
        Row("classifier.*", ("decoder.*",)),
    ),
    renamed=((r"^module\.", ""),),  # of models that were trained on several GPUs
)


def recognises(file: Path) -> bool:
    """Whether the tensors of this file have S4D's names. Raises UserError for one that cannot be read."""
    return any(name.endswith("s4_layers.0.kernel.log_A_real") for name in read_settings(file)[0])


def load_s4(file: Path, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype | None" = None) -> Loaded:
    """Read a file of weights; pictures are to be prepared as they were for it (`processor` is None).

    Raises UserError for missing or unknown tensors and those that do not fit each other.
    """
    weights, where = read_pickled(file), str(file)
    config = _config({name.removeprefix("module."): tensor for name, tensor in weights.items()}, where)
    model = fill(config, lambda ours: NAMES.read(ours, weights, where), torch.device(device), dtype, where)
    return Loaded(config, model, None, {"source": where, "format": "s4", "family": "s4d"})


def save_s4(path: Path, loaded: Loaded, dtype: "str | torch.dtype | None" = None) -> None:
    """Write a .pt file that the authors' model loads. Raises UserError for a model that it cannot say."""
    config, path = loaded.config, Path(path)
    fits = isinstance(config, ViTConfig) and config.classes and isinstance(config.block.mixer, S4DConfig)
    if not fits or _plain(config) != _described(weights := NAMES.write(own_weights(loaded.model)), config.image):
        raise UserError(f"{path}: these files hold S4D alone, reading pixels in one direction; use format='onefold'")
    kind = dtype_named(dtype)
    stored = {name: tensor.detach().to("cpu", kind).clone() for name, tensor in weights.items()}
    with atomic_file(path) as file:
        torch.save({"model": stored}, file)


def _config(weights: Mapping[str, Tensor], where: str) -> ViTConfig:
    try:
        return _described(weights)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{where}: no S4D that is supported ({error})") from None


def _described(weights: Mapping[str, Tensor], image: int | None = None) -> ViTConfig:
    width, channels = weights["encoder.weight"].shape
    depth = sum(name.endswith(".kernel.log_dt") for name in weights)
    mixer = S4DConfig(states=2 * weights["s4_layers.0.kernel.log_A_real"].shape[1])
    norm = LayerNormConfig(eps=1e-5)
    return ViTConfig(
        image=image or _SIDES.get(channels, 32),
        patch=1,
        channels=channels,
        classes=len(weights["decoder.weight"]),
        width=width,
        depth=depth,
        block=BlockConfig(norm=norm, mixer=mixer, ffn=None, residual="post"),
        norm=None,
        class_token=False,
        places=None,
        pool="mean",
    )


def _plain(config: ViTConfig) -> ViTConfig:
    """Without what matters to training only."""
    begun = {"block.mixer.init": "lin", "block.mixer.dt": S4DConfig().dt, "block.mixer.dropout": 0.0}
    return config.but({**begun, "block.dropout": 0.0, "block.drop_path": None, "dropout": 0.0, "drop_path": None})
