"""The GGUF container and its block formats, against the format's own package."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.interop.gguf.blocks import encode
from onefold.interop.gguf.container import open_container, write_container

READ = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def random_bytes(name: str, rows: int, row: int, rng: np.random.Generator) -> np.ndarray:
    """Stored bytes of `rows` × `row` numbers whose half-precision scales are finite."""
    kind = gguf.GGMLQuantizationType[name]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, row), dtype=np.float32)
        return gguf.quants.quantize(values, kind)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    return rng.integers(0, 64, (rows, row // per_block * size), dtype=np.uint8)  # 64: no exponent reaches infinity


@pytest.mark.parametrize("name", READ)
def test_every_type_decodes_as_the_format_package_does(name, tmp_path):
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[name]
    raw = random_bytes(name, 3, 512, rng)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("small", np.arange(5, dtype=np.float32))  # forces padding before the next one
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_container(tmp_path / "m.gguf")
    assert list(opened) == ["small", "w"]
    assert torch.equal(opened["small"], torch.arange(5.0))
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind).astype(np.float32))
    assert opened["w"].shape == (3, 512)
    assert torch.equal(opened["w"].float(), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_encoding_equals_the_reference_bit_for_bit(name):
    values = torch.randn(7, 96, generator=torch.Generator().manual_seed(0)) * 3
    values[2, :32] = 0  # a block whose scale is zero
    values[3, 0], values[3, 1] = 127.0, 0.5  # a half: rounded away from zero
    values[3, 2:32] = 0
    expected = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[name])
    assert encode(values, name).numpy().tobytes() == expected.tobytes()


def test_what_we_write_the_format_package_reads(tmp_path):
    values = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.eps": 0.5,
        "yes": True,
        "words": ["a", "bé", ""],
        "types": [1, -3],
        "scores": [0.25, -1.5],
    }
    tensors = {"a": torch.randn(3, 64), "norm": torch.randn(5), "h": torch.randn(2, 7)}
    kinds = {"a": "Q8_0", "norm": "F32", "h": "F16"}
    write_container(tmp_path / "m.gguf", values, tensors, kinds)
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, value in values.items():
        assert theirs.get_field(key).contents() == value
    read = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in theirs.tensors}
    assert np.array_equal(read["norm"], tensors["norm"].numpy())
    assert np.array_equal(read["h"].reshape(2, 7), tensors["h"].half().numpy())
    assert np.abs(read["a"] - tensors["a"].numpy()).max() < 0.02
    ours = open_container(tmp_path / "m.gguf")
    assert ours.metadata == values
    assert torch.equal(ours["a"], torch.from_numpy(read["a"]))


@pytest.fixture
def good(tmp_path) -> Path:
    write_container(tmp_path / "good.gguf", {"k": ["v"] * 20}, {"w": torch.randn(8, 32)}, {"w": "F16"})
    return tmp_path / "good.gguf"


def test_a_file_cut_anywhere_is_refused(good):
    data = good.read_bytes()
    for size in [0, 3, 10, 30, 100, 300, len(data) - 1]:
        good.write_bytes(data[:size])
        with pytest.raises(UserError, match=str(good)):
            open_container(good)["w"]


def test_flipped_header_bits_never_escape_as_another_error(good):
    data = good.read_bytes()
    header = len(data) - 8 * 32 * 2
    refused = 0
    for at in range(header):
        for bit in (0, 6):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            good.write_bytes(damaged)
            try:
                opened = open_container(good)
                [opened[name] for name in opened]
            except UserError:
                refused += 1
    assert refused > 50
