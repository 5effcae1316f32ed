"""Reading tensors from disk without running anything: safetensors, and pickled ones through a tensors-only reader."""

import json
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import MANIFEST, digest_file

SHARD_BYTES = 4 * 10**9
_DAMAGED = "is cut off or damaged. Fetch or copy it again."


class SafetensorFiles(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files as one mapping, read when they are asked for."""

    def __init__(self, paths: list[Path]):
        self._stack, self._home = ExitStack(), {}
        for path in paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                missing = not path.is_file()
                raise UserError(f"{path} is missing" if missing else f"{path} {_DAMAGED} ({error})") from None
            self._home |= dict.fromkeys(file.keys(), (file, path))

    def __getitem__(self, name: str) -> Tensor:
        file, path = self._home[name]
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{path} {_DAMAGED} ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def read_index(path: Path) -> list[Path]:
    """The shards that a `*.index.json` names, in order; their names may not lead out of the folder."""
    try:
        places = json.loads(path.read_text())["weight_map"]
        names = list(dict.fromkeys(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a shard index (JSON with a weight_map)") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path}: {name!r} is not a file of this folder")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name} is missing, though {path.name} names it")
    return [path.parent / name for name in names]


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth or .bin file, mapped rather than read. Nothing else in it is ever built.

    PyTorch's restricted unpickler knows tensors and plain containers only; a file with code in it is refused.
    """
    return _named(_unpickled(path), path)


def read_settings(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The same, and all else that the file says: plain values, and argparse's namespaces of them."""
    with torch.serialization.safe_globals([Namespace]):  # a bag of attributes, which runs nothing
        content = _unpickled(path)
    return _named(content, path), content


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, which is no news to a user
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise UserError(f"{path} holds more than tensors; such files could run code and are not opened") from None
        raise UserError(f"{path} {_DAMAGED} ({type(error).__name__})") from None


def _named(content: Any, path: Path) -> dict[str, Tensor]:
    tensors = _tensors(content)
    if not tensors:
        raise UserError(f"{path} holds no tensors by name")
    return tensors


def write_safetensors(
    folder: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    least: Mapping[str, torch.dtype] | None = None,
) -> None:
    """`model.safetensors`, or shards of at most `shard_bytes` and their index, as Hugging Face names them.

    `dtype`: None keeps each tensor's. `least`: tensors that are not made narrower than so.
    Memory: one shard where tensors have to be converted or copied.
    """
    least = least or {}
    kinds = {name: dtype and torch.promote_types(dtype, least.get(name, dtype)) for name in weights}
    sizes = {name: tensor.numel() * (kinds[name] or tensor.dtype).itemsize for name, tensor in weights.items()}
    shards: list[list[str]] = [[]]
    size = 0
    for name in weights:
        if shards[-1] and size + sizes[name] > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += sizes[name]
    places = {}
    for i, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(names, file)
        try:
            save_file({name: _alone(weights[name], kinds[name]) for name in names}, folder / file, {"format": "pt"})
        except SafetensorError as error:  # a full disk, most often
            raise OSError(f"{error}") from error
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def find_safetensors(folder: Path) -> list[Path] | None:
    """The files that hold a folder's weights; None when they are not safetensors."""
    if (index := folder / "model.safetensors.index.json").is_file():
        return read_index(index)
    return [file] if (file := folder / "model.safetensors").is_file() else None


def check_written(folder: Path, every: bool = False) -> None:
    """Compare checksums with the manifest that lies beside what we wrote ourselves: of the weights, or of `every` file.

    Folders below are left to those who know them; without a manifest there is nothing to compare.
    """
    try:
        listed: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return
    for name, expected in listed.items():
        file = folder / name
        meant = Path(name).name == name and (every or name.endswith(".safetensors"))
        if meant and file.is_file() and digest_file(file) != expected.get("blake2b"):
            raise UserError(
                f"{file} is damaged: its checksum is not the one in {MANIFEST} (delete that if you changed the file)"
            )


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _alone(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """On the CPU, in a memory of its own: views share theirs, which the format refuses."""
    tensor = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _tensors(content: Any) -> dict[str, Tensor]:
    """A state dict, or one inside {"model" | "state_dict" | "module": ...}."""
    if not isinstance(content, Mapping):
        return {}
    for key in ("state_dict", "model", "module"):
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
