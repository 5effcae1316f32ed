"""Positions: published formulas, by hand or by transformers."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from onefold.nn.position import (
    AlibiConfig,
    LinearScaling,
    Llama3Scaling,
    RotaryConfig,
    SinusoidalPositionConfig,
    rotate,
    turns,
)

POSITIONS = torch.tensor([[0, 1, 2, 17, 8191, 20000]])


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (None, {"rope_type": "default"}),
        (LinearScaling(factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Llama3Scaling(factor=8.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rotary_angles_equal_transformers(scaling, theirs):
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **theirs},
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), POSITIONS)
    angles = RotaryConfig(theta=500000.0, scaling=scaling).angles(POSITIONS, 64)
    torch.testing.assert_close(angles.cos(), cos[..., :32], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(angles.sin(), sin[..., :32], atol=1e-5, rtol=1e-5)


def test_a_fraction_of_each_head_turns():
    assert RotaryConfig(fraction=0.25).angles(POSITIONS, 64).shape[-1] == 8


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_gradient_of_a_turn_is_that_of_its_formula(fraction):
    angles = RotaryConfig(fraction=fraction).angles(torch.arange(3)[None], 8)
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *turns(angles, torch.float64)), x)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (8, [2.0**-i for i in range(1, 9)]),
        (
            6,
            [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3],
        ),  # four of a power of two, then every other of eight
    ],
)
def test_alibi_slopes_are_those_of_the_paper(heads, slopes):
    torch.testing.assert_close(AlibiConfig.slopes(heads), torch.tensor(slopes))


def test_sinusoids_are_those_of_the_paper():
    x = SinusoidalPositionConfig().build(6)(torch.tensor([[3]]))[0, 0]
    expected = [f(3 / 10000 ** (2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
    torch.testing.assert_close(x, torch.tensor(expected))
