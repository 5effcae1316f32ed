"""The feed-forward half of a block: the gradient that is written out is that of the formula."""

import pytest
import torch
import torch.nn.functional as F

from onefold.nn.feedforward import GatedMLPConfig


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_swiglu_and_its_gradient_are_those_of_the_formula(dtype):
    torch.manual_seed(0)
    layer = GatedMLPConfig(width=6).build(4).to(dtype)
    x = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    gate, up = layer.gate_up.weight.chunk(2)
    formula = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), layer.out.weight)
    inputs = [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(y.square().sum(), inputs) for y in (layer(x), formula))
    tolerance = {"atol": 1e-2, "rtol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, wanted, **tolerance)
