"""Bit for bit what bitsandbytes stores; algebra of the layer."""

import pytest
import torch
from torch import nn

from onefold.nn.linear import Linear
from onefold.nn.quantized import (
    SCALES_BLOCK,
    TABLES,
    QuantizedLinear,
    Scales,
    dequantize,
    dequantize_scales,
    dynamic_table,
    quantize,
    quantize_rows,
    quantize_scales,
)

torch.manual_seed(0)
WEIGHT = torch.randn(96, 130) * torch.rand(96, 1)  # 195 blocks
WEIGHT[5:9] = 0.0  # blocks of nothing but zeros


def layer(weight=WEIGHT, bias=False) -> Linear:
    made = Linear(weight.shape[1], weight.shape[0], bias=bias)
    made.weight = nn.Parameter(weight.clone())
    return made


@pytest.fixture(scope="module")
def bnb():
    pytest.importorskip("bitsandbytes")
    import bitsandbytes.functional as functional

    return functional


def plain_kernel(name: str):
    """An operation of bitsandbytes without its shortcuts for CPUs, which round some near-ties to the wrong side."""
    kernel = torch.library.get_kernel(f"bitsandbytes::{name}", "PrivateUse1")
    return lambda *args: kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize(
    "weight", [WEIGHT, WEIGHT.half(), WEIGHT[:3, :33], WEIGHT[:2, :32]], ids=["fp32", "fp16", "rest", "one"]
)
def test_codes_and_scales_are_those_of_bitsandbytes(bnb, scheme, weight):
    theirs, state = bnb.quantize_4bit(weight, quant_type=scheme, blocksize=64)
    codes, scales = quantize(weight, scheme)
    assert torch.equal(codes, theirs.flatten())
    assert torch.equal(scales, state.absmax)
    assert torch.equal(torch.tensor(TABLES[scheme]), state.code)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", [32, 128])
def test_numbers_are_those_of_bitsandbytes(bnb, scheme, double, block):
    theirs, state = bnb.quantize_4bit(WEIGHT, quant_type=scheme, blocksize=block, compress_statistics=double)
    ours = QuantizedLinear(layer(), scheme, block, double)
    if double:
        exact = plain_kernel("quantize_blockwise")(
            bnb.quantize_4bit(WEIGHT, quant_type=scheme, blocksize=block)[1].absmax - state.offset,
            dynamic_table(torch.device("cpu")),
            SCALES_BLOCK,
        )
        state.absmax, state.state2.absmax = exact
        assert torch.equal(ours.scales, state.absmax)
        assert torch.equal(ours.mean, state.offset)
    assert torch.equal(ours.dense(), bnb.dequantize_4bit(theirs, state))


def test_the_table_for_scales_is_that_of_bitsandbytes(bnb):
    assert torch.equal(dynamic_table(torch.device("cpu")), bnb.create_dynamic_map())


def test_eight_bits_are_those_of_bitsandbytes(bnb):
    weight = WEIGHT[10:]
    codes, scales, _ = plain_kernel("int8_vectorwise_quant")(weight, 0.0)
    ours = QuantizedLinear(layer(weight), "int8")
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scales, scales)
    torch.testing.assert_close(ours.dense(), bnb.int8_vectorwise_dequant(codes, scales), rtol=1e-7, atol=0)


def test_the_first_weight_lies_in_the_high_half_of_a_byte():
    codes, scales = quantize(torch.tensor([2.0, -2.0]), "nf4")
    assert codes.tolist() == [0xF0]
    assert scales.tolist() == [2.0]


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int4"])
def test_numbers_of_the_table_survive_and_others_go_to_the_nearest(scheme):
    table = torch.tensor(TABLES[scheme])
    codes, scales = quantize(3 * table.repeat(4), scheme)
    torch.testing.assert_close(dequantize(codes, scales, scheme), 3 * table.repeat(4))
    weight = torch.randn(640)
    rounded = dequantize(*quantize(weight, scheme), scheme)
    scaled = weight.view(-1, 64) / weight.view(-1, 64).abs().amax(1, keepdim=True)
    nearest = (scaled[..., None] - table).abs().amin(-1)
    off = ((rounded - weight).view(-1, 64) / weight.view(-1, 64).abs().amax(1, keepdim=True)).abs()
    torch.testing.assert_close(off, nearest, rtol=1e-4, atol=1e-6)


def test_scales_in_eight_bits_are_off_by_little():
    scales = torch.rand(1000) + 0.5
    back = dequantize_scales(quantize_scales(scales))
    assert (back - scales).abs().max() < 0.01
    assert torch.equal(dequantize_scales(Scales(scales)), scales)


def test_rows_in_eight_bits_are_off_by_half_a_step_at_most():
    codes, scales = quantize_rows(WEIGHT)
    assert codes.dtype == torch.int8
    off = QuantizedLinear(layer(), "int8").dense() - WEIGHT
    assert (off.abs() <= scales[:, None] / 127 * 0.5001 + 1e-9).all()


@pytest.mark.parametrize(
    ("scheme", "double", "bits"), [("nf4", True, 4.127), ("nf4", False, 4.5), ("int8", True, 8.03)]
)
def test_bits_of_a_weight(scheme, double, bits):
    size = 1024
    measured = 8 * QuantizedLinear(layer(torch.randn(size, size)), scheme, double=double).bytes / size**2
    assert measured == pytest.approx(bits, abs=0.002)


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int4", "int8"])
@pytest.mark.parametrize("rows", [3, 200])  # below and above what goes to oneDNN
def test_output_and_gradient_are_those_of_the_rounded_weight(scheme, rows):
    ours = QuantizedLinear(layer(bias=True), scheme)
    plain = layer(ours.dense(), bias=True)
    plain.bias = ours.bias
    x = torch.randn(2, rows, 130, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, z = ours(x), plain(other)
    torch.testing.assert_close(y, z)
    (gradient := torch.randn_like(y))
    y.backward(gradient)
    bias, ours.bias.grad = ours.bias.grad, None
    z.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(bias, plain.bias.grad)


def test_nothing_of_the_size_of_the_weight_is_kept_for_the_backward_pass():
    ours, kept = QuantizedLinear(layer(), "nf4"), []
    x = torch.randn(2, 130, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(x)
    assert sum(t.numel() for t in kept) == 0


def test_it_computes_in_the_dtype_of_autocast_and_of_its_input():
    ours = QuantizedLinear(layer(bias=True), "nf4")
    x = torch.randn(4, 130, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert QuantizedLinear(layer(WEIGHT.bfloat16()), "nf4").dense().dtype == torch.bfloat16


def test_scales_keep_their_precision_in_another_dtype():
    ours = QuantizedLinear(layer(), "nf4")
    expected = ours.dense()
    ours.to(torch.bfloat16)
    assert ours.dense().dtype == torch.bfloat16
    assert torch.equal(ours.dense(torch.float32), expected)


def test_codes_are_no_part_of_a_state_dict_and_move_with_the_model():
    ours = QuantizedLinear(layer(bias=True), "nf4")
    assert list(ours.state_dict()) == ["bias"]
    assert ours.to("meta").codes.is_meta
