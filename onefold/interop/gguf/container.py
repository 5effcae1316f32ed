"""The GGUF container: a table of typed values, a table of tensors, and their aligned bytes.

Source: the format's specification in ggml's docs/gguf.md (versions 2 and 3, little-endian).
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.interop.gguf.blocks import KINDS, Kind, decode, encode, kind_of

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: its shape as torch has it (slowest dimension first), type and bytes."""

    shape: tuple[int, ...]
    kind: Kind
    start: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Container(Mapping[str, Tensor]):
    """An open GGUF file: `metadata` by key; as a mapping, tensors by name, decoded when they are asked for."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]
    content: mmap.mmap = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.tensors[name]
        # A copy, so that nothing points into the file once it is closed or replaced.
        raw = torch.frombuffer(bytearray(self.content[stored.start : stored.start + stored.bytes]), dtype=torch.uint8)
        if hasattr(mmap, "MADV_DONTNEED"):  # what has been read may leave memory: else the file stays in it whole
            page = stored.start // mmap.PAGESIZE * mmap.PAGESIZE
            self.content.madvise(mmap.MADV_DONTNEED, page, stored.start + stored.bytes - page)
        return decode(raw, stored.kind, name).view(stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_container(path: Path) -> Container:
    """Read the tables of a GGUF file. Raises UserError when it is none, is cut off, or contradicts itself."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{path}: cannot be read as a GGUF file ({error})") from None
    reader = _Reader(content, path)
    if reader.take(4) != MAGIC:
        raise UserError(f"{path}: not a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version}; versions 2 and 3 (little-endian) are read")
    count, keys = reader.number("Q"), reader.number("Q")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.string()
        values[key] = reader.value(reader.number("I"), key)
    listed = [reader.entry() for _ in range(count)]
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise UserError(f"{path}: damaged: general.alignment is {alignment!r}")
    base = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, shape, code, offset in listed:
        kind = kind_of(code, name)
        size = _bytes(shape, kind, path, name)
        if base + offset + size > len(content):
            raise UserError(f"{path}: cut off: the tensor {name} reaches beyond the end of the file. Fetch it again.")
        tensors[name] = Stored(shape, kind, base + offset, size)
    return Container(path, values, tensors, content)


def write_container(
    path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Mapping[str, str]
) -> None:
    """Write `tensors`, each as the type that `kinds` names for it; `path` should be a temporary place.

    Integers become uint32 (in lists: int32), floats float32. Tensors are taken one at a time.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
        for key, value in values.items():
            file.write(_packed_string(key) + _packed(value))
        offset = 0
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name, shape in shapes.items():
            kind = KINDS[kinds[name]]
            file.write(_packed_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            file.write(struct.pack("<IQ", kind.code, offset))
            offset += -(-_bytes(shape, kind, path, name) // ALIGNMENT) * ALIGNMENT
        _pad(file)
        for name in shapes:
            file.write(encode(tensors[name].detach().cpu(), kinds[name]).numpy().tobytes())
            _pad(file)


class _Reader:
    """Takes typed values off the front of the file; every step stays inside of it."""

    def __init__(self, content: mmap.mmap, path: Path):
        self.content, self.path, self.at = content, path, 0

    def take(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            raise UserError(f"{self.path}: cut off or damaged in its header. Fetch it again.")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise UserError(f"{self.path}: damaged: {key} has the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise UserError(f"{self.path}: damaged: {key} is a list of the unknown type {kind}")
        size = struct.calcsize(_SCALARS[kind])
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self.take(count * size)))

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise UserError(f"{self.path}: damaged: the tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def _bytes(shape: tuple[int, ...], kind: Kind, path: Path, name: str) -> int:
    """The bytes of a tensor, whose rows hold whole blocks."""
    row = shape[-1] if shape else 1
    if row % kind.values:
        raise UserError(f"{path}: the tensor {name} has rows of {row} numbers, not whole blocks of {kind.values}")
    count = 1
    for size in shape:
        count *= size
    return count // kind.values * kind.bytes


def _packed(value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, list):
        kind, code = _list_kind(value)
        strings = kind == _STRING
        items = b"".join(map(_packed_string, value)) if strings else struct.pack(f"<{len(value)}{code}", *value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_string(value)
    kind = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack("<I" + _SCALARS[kind], kind, value)


def _list_kind(values: list) -> tuple[int, str]:
    if all(isinstance(v, str) for v in values):
        return _STRING, ""
    kind = 7 if isinstance(values[0], bool) else 5 if isinstance(values[0], int) else 6
    return kind, _SCALARS[kind]


def _packed_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
