"""Norms: the gradient that is written out is autograd's; what cannot be normalised is told."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.errors import UserError
from onefold.nn.norm import RMSNormConfig
from onefold.nn.vision.batch_norm import BatchNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradient_equal_torchs(dtype):
    torch.manual_seed(0)
    norm = RMSNormConfig(eps=1e-5).build(24).to(torch.float64 if dtype == torch.float64 else torch.float32)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    gradient = torch.randn(3, 5, 24, dtype=dtype)
    norm(x).backward(gradient)
    got = x.grad.clone(), norm.weight.grad.clone()
    x.grad = norm.weight.grad = None
    F.rms_norm(x, (24,), norm.weight.to(dtype), 1e-5).backward(gradient)
    tolerance = {"atol": 6e-2, "rtol": 3e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, (x.grad, norm.weight.grad), **tolerance)
    norm.weight.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(norm(x), x, gradient), got[:1])


def test_rms_norm_without_a_gradient_is_the_same():
    norm, x = RMSNormConfig().build(16), torch.randn(2, 16)
    with torch.no_grad():
        alone = norm(x)
    torch.testing.assert_close(norm(x), alone)


def test_a_single_row_has_no_variance():
    layer = BatchNorm(3)
    with pytest.raises(UserError, match="let a step compute two"):
        layer(torch.randn(1, 3))
    assert layer(torch.randn(1, 3, 4, 4)).shape == (1, 3, 4, 4)  # its places are compared
    assert layer.eval()(torch.randn(1, 3)).shape == (1, 3)
