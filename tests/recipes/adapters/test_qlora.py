"""QLoRA's recipe: what it says, and that quantising for a moment leaves a model as it was."""

import pytest
import torch

from onefold import recipes
from onefold.adapt.lora import LoRAConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.models import families
from onefold.nn.quantized import QuantizedLinear
from onefold.recipes.adapters import qlora


def test_the_papers_setting_and_changes_to_it():
    run = qlora.recipe("model.gguf", "dialogues.jsonl")
    assert run.adapt == (QuantizeConfig(), LoRAConfig(rank=64, alpha=16.0))
    run = recipes.resolve("qlora", {"start": "model.gguf", "chat": "dialogues.jsonl", "adapt.0.scheme": "int8"})
    assert run.adapt[0] == QuantizeConfig(scheme="int8")


def test_what_rounding_costs_is_asked_without_leaving_a_trace():
    torch.manual_seed(0)
    shape = {"vocab": 61, "width": 64, "depth": 2, "context": 64, "block.mixer.heads": 4, "block.ffn.width": 64}
    model = families.llama2().but(shape).build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    errors = {name: qlora.rounding(model, step) for name, step in qlora.SCHEMES.items()}
    assert errors["NF4"] == pytest.approx(0.092, abs=0.005)  # of normal weights in blocks of 64
    assert errors["int8"] < errors["NF4"] < min(errors["FP4"], errors["Int4"])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
