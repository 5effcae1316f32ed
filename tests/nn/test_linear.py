"""Whichever library multiplies, it is the linear layer of PyTorch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from onefold.nn.linear import ENOUGH, Linear, linear


def gradients(layer, x, forward):
    x = x.clone().requires_grad_()
    y = forward(x)
    y.square().sum().backward()
    found = [x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return y, found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (3, 5, 40), (ENOUGH, 40), (2, ENOUGH, 40)])
@pytest.mark.parametrize("outward", [7, 64, 193])
def test_it_is_the_linear_layer_gradients_included(outward, shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(40, outward, bias=bias), torch.randn(shape)
    torch.testing.assert_close(
        gradients(layer, x, layer),
        gradients(layer, x, lambda x: F.linear(x, layer.weight, layer.bias)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_transposed_inputs_and_weights_are_read_as_they_are():
    x, weight = torch.randn(40, 2 * ENOUGH).T, torch.randn(40, 24).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=1e-4, rtol=1e-4)


def test_frozen_weights_get_no_gradient_but_pass_one_on():
    layer, x = Linear(40, 24).requires_grad_(False), torch.randn(ENOUGH, 40, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x), atol=1e-5, rtol=1e-4)
    assert layer.weight.grad is layer.bias.grad is None


def test_autocast_computes_in_its_own_type():
    layer, x = Linear(40, 24), torch.randn(ENOUGH, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    """In a process of its own, since shapes and types checked at every call cannot be compiled."""
    script = """
import torch
from onefold.nn.linear import Linear
layer, x = Linear(40, 24), torch.randn(256, 40, requires_grad=True)
found = []
for forward in (layer, torch.compile(layer, fullgraph=True)):
    found.append([y := forward(x), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
