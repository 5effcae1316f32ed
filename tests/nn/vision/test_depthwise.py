"""The gradient that is written out is autograd's."""

import pytest
import torch
import torch.nn.functional as F

from onefold.nn.vision import depthwise
from onefold.nn.vision.depthwise import LARGE, NARROW, DepthwiseConv


@pytest.mark.parametrize(
    ("width", "kernel", "sides"),
    [(NARROW, 7, (5, 6)), (NARROW, 3, (1, 1)), (NARROW, 5, (LARGE, 9)), (8, 7, (6, 6)), (NARROW, 3, (40, 4))],
)
@pytest.mark.parametrize("last", [True, False])
def test_it_is_the_convolution_gradients_included(width, kernel, sides, last, monkeypatch):
    monkeypatch.setattr(depthwise, "AT_ONCE", 2 * width * sides[0] * sides[1])  # more than one piece
    torch.manual_seed(0)
    rows, conv = 3, DepthwiseConv(width, kernel)
    x = torch.randn(rows, width, *sides)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    gradient = torch.randn(rows, width, *sides)
    found = []
    for forward in (conv, lambda x: F.conv2d(x, conv.weight, conv.bias, padding=kernel // 2, groups=width)):
        of = x.clone().requires_grad_()
        y = forward(of)
        found.append([y, *torch.autograd.grad(y, [of, conv.weight, conv.bias], gradient)])
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_frozen_weights_get_no_gradient_but_pass_one_on():
    conv, x = DepthwiseConv(NARROW, 3).requires_grad_(False), torch.randn(1, NARROW, 4, 4, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is conv.bias.grad is None


def test_autocast_computes_in_its_own_type():
    with torch.autocast("cpu", torch.bfloat16):
        assert DepthwiseConv(NARROW, 3)(torch.randn(1, NARROW, 4, 4)).dtype == torch.bfloat16
