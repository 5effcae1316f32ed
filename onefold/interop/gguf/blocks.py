"""Numbers in a GGUF file: plain floats, and blocks of 32 small integers that share a scale.

Our own code decodes the common types; the rarer ones (K- and I-quants) go through the optional `gguf` package, which
the authors of the format keep. Source: the block structures in ggml's documentation of GGUF.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from onefold.core.errors import UserError, missing_extra

BLOCK = 32  # values that share one scale, in the types below


class Kind(NamedTuple):
    """One storage type: `values` numbers in `bytes` bytes."""

    code: int
    values: int
    bytes: int


KINDS = {
    "F32": Kind(0, 1, 4),
    "F16": Kind(1, 1, 2),
    "Q4_0": Kind(2, BLOCK, 2 + 16),
    "Q4_1": Kind(3, BLOCK, 4 + 16),
    "Q8_0": Kind(8, BLOCK, 2 + 32),
    "BF16": Kind(30, 1, 2),
}
_NAMES = {kind.code: name for name, kind in KINDS.items()}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def kind_of(code: int, tensor: str) -> Kind:
    """The storage type with this number. Raises UserError when nobody here can decode it."""
    if code in _NAMES:
        return KINDS[_NAMES[code]]
    package = _package(f"decoding the tensor {tensor} (GGML type {code})")
    try:
        name = package.GGMLQuantizationType(code)
        return Kind(code, *package.GGML_QUANT_SIZES[name])
    except (ValueError, KeyError):
        raise UserError(f"the tensor {tensor} has the unknown GGML type {code}; known are {', '.join(KINDS)}") from None


def decode(raw: Tensor, kind: Kind, tensor: str) -> Tensor:
    """Bytes (uint8[n]) as numbers: plain types keep their dtype, blocks become float32."""
    name = _NAMES.get(kind.code)
    if name in _PLAIN:
        return raw.view(_PLAIN[name])
    if name is None:
        return _decode_elsewhere(raw, kind, tensor)
    blocks = raw.view(-1, kind.bytes)
    scale = _half(blocks, 0)
    if name == "Q8_0":
        return (blocks[:, 2:].view(torch.int8) * scale).flatten()
    if name == "Q4_0":
        return ((_nibbles(blocks[:, 2:]) - 8) * scale).flatten()
    return (_nibbles(blocks[:, 4:]) * scale + _half(blocks, 2)).flatten()  # Q4_1: a minimum beside the scale


def encode(tensor: Tensor, name: str) -> Tensor:
    """Numbers as bytes (uint8[n]) of the type F32, F16, BF16 or Q8_0; for Q8_0 the rows are whole blocks."""
    if name in _PLAIN:
        return tensor.to(_PLAIN[name]).contiguous().view(torch.uint8).flatten()
    if name != "Q8_0":
        raise UserError(f"GGUF files are written as F32, F16, BF16 or Q8_0, not {name}")
    values = tensor.float().reshape(-1, BLOCK)
    scale = values.abs().amax(dim=1, keepdim=True) / 127
    scaled = values * torch.where(scale > 0, 1 / scale, 0.0)
    # ggml rounds halves away from zero, torch.round to even.
    codes = (scaled.abs() + 0.5).floor() * scaled.sign()
    return torch.cat([scale.half().view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], dim=1).flatten()


def _half(blocks: Tensor, start: int) -> Tensor:
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()  # [n, 1]


def _nibbles(packed: Tensor) -> Tensor:
    """[n, 16] bytes → [n, 32]: all low halves first, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=1).float()


def _decode_elsewhere(raw: Tensor, kind: Kind, tensor: str) -> Tensor:
    package = _package(f"decoding the tensor {tensor}")
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(raw.numpy(), package.GGMLQuantizationType(kind.code)).copy())
    except NotImplementedError:
        name = package.GGMLQuantizationType(kind.code).name
        raise UserError(f"the tensor {tensor} is stored as {name}, which the gguf package cannot decode") from None


def _package(purpose: str):
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "gguf", purpose) from None
    return gguf
