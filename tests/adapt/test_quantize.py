"""Quantising a model's matrices: what is quantised, adapters on top, and taking it back."""

import pytest
import torch

from onefold.adapt.every import adapt
from onefold.adapt.lora import LoRAConfig
from onefold.adapt.merge import merge
from onefold.adapt.quantize import QuantizeConfig
from onefold.core.errors import UserError
from onefold.models import families
from onefold.nn.linear import Linear
from onefold.nn.quantized import QuantizedLinear

TOKENS = torch.arange(24).view(2, 12)
SMALL = {"vocab": 61, "width": 32, "depth": 2, "context": 64, "block.mixer.heads": 4, "block.ffn.width": 40}


def model(**changes):
    torch.manual_seed(0)
    return families.llama2().but({**SMALL, **changes}).build()


def kinds(model, kind) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) is kind}


def test_matrices_of_blocks_are_quantised_and_nothing_trains_but_a_classifier():
    own = model(classes=3)
    before = kinds(own, Linear)
    QuantizeConfig().apply(own)
    assert kinds(own, QuantizedLinear) == {name for name in before if name.startswith("blocks.")}
    trained = [name for name, p in own.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("classifier.") for name in trained)


@pytest.mark.parametrize(("scheme", "off"), [("nf4", 0.15), ("int8", 0.02)])
def test_a_quantised_model_says_nearly_the_same(scheme, off):
    own = model()
    expected = own.features(TOKENS)
    QuantizeConfig(scheme=scheme).apply(own)
    difference = own.features(TOKENS) - expected
    assert 0 < difference.norm() / expected.norm() < off


def test_an_adapter_on_it_learns_and_merges_into_what_was_computed_with():
    own = adapt(model(), (QuantizeConfig(), LoRAConfig(rank=4)))
    expected = own(TOKENS)
    trained = [p for p in own.parameters() if p.requires_grad]
    expected.square().mean().backward()
    assert all(p.grad is not None for p in trained)
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)
    adapted = own(TOKENS)
    assert (adapted - expected).abs().max() > 0.1
    merged = merge(own)
    assert not kinds(merged, QuantizedLinear)
    torch.testing.assert_close(merged(TOKENS), adapted, rtol=1e-4, atol=1e-5)


def test_a_packed_matrix_is_quantised_as_a_whole():
    own = model()
    QuantizeConfig(targets=("mixer.qkv", "ffn.out")).apply(own)
    assert len(kinds(own, QuantizedLinear)) == 4
    with pytest.raises(UserError, match=r"blocks\.0\.mixer\.q lies in blocks\.0\.mixer\.qkv with others"):
        QuantizeConfig(targets=("mixer.q",)).apply(model())


def test_a_head_of_its_own_can_be_quantised():
    own = model()
    expected = own(TOKENS)
    QuantizeConfig(scheme="int8", targets=("unembed",)).apply(own)
    torch.testing.assert_close(own(TOKENS), expected, rtol=0.05, atol=0.02)


def test_what_cannot_be_quantised_is_said():
    with pytest.raises(UserError, match=r"'blocks\.9\.\*' fits no matrix"):
        QuantizeConfig(targets=("blocks.9.*",)).apply(model())
    with pytest.raises(UserError, match="unembed is the token embedding, too"):
        QuantizeConfig(targets=("unembed",)).apply(model(tied=True))
    with pytest.raises(UserError, match="quantize comes first, and once"):
        adapt(model(), (LoRAConfig(), QuantizeConfig()))
    with pytest.raises(UserError, match="scheme"):
        QuantizeConfig.from_dict({"scheme": "nf5"})
