"""Adapters that are a part of the weights for as long as they are at work."""

import pytest
import torch

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.merge import can_be_merged, merge, merge_active
from onefold.adapt.prompts import PrefixTuningConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.core.errors import UserError
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from onefold.models.families import gpt2, llama2
from tests.adapt.test_lora import IDS, rough, small


@pytest.fixture(params=[False, True], ids=["lora", "dora"])
def model(request):
    """With two adapters, of which the second is active."""
    model = small(llama2("7b"))
    for name, rank in (("one", 2), ("two", 3)):
        LoRAConfig(rank=rank, dora=request.param, targets=("mixer.q", "ffn.*")).apply(model, name)
        rough(model)
    return model


def test_it_computes_the_same_and_is_taken_back_to_the_bit(model):
    switch = model.switch
    beside, before = model(IDS), {name: p.clone() for name, p in model.named_parameters()}
    merge_active(model)
    assert (switch.merged, switch.beside) == (True, None)
    torch.testing.assert_close(model(IDS), beside, atol=1e-5, rtol=1e-5)
    once = {name: p.clone() for name, p in model.named_parameters()}
    merge_active(model)
    assert all(torch.equal(p, once[name]) for name, p in model.named_parameters())
    switch.use("two")
    assert switch.merged
    for take_back in (switch.unmerge, lambda: switch.use("one"), lambda: switch.use(None), lambda: switch.add("new")):
        switch.use("two")
        merge_active(model)
        assert not torch.equal(model.blocks[0].mixer.qkv.base.weight, before["blocks.0.mixer.qkv.base.weight"])
        take_back()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert not switch.merged


def test_for_good(model):
    """What was merged for now may be merged for good."""
    beside = model(IDS)
    merge_active(model)
    torch.testing.assert_close(merge(model)(IDS), beside, atol=1e-5, rtol=1e-5)
    assert not model.switch.names


def test_vectors_before_the_text_stay_where_they_are():
    model = small(gpt2("small"))
    LoRAConfig(rank=2).apply(model)
    PrefixTuningConfig(length=3).apply(model)
    beside = rough(model)(IDS)
    merge_active(model)
    torch.testing.assert_close(model(IDS), beside, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_merged_says_so():
    model = small(llama2("7b"))
    with pytest.raises(UserError, match="no adapter is active"):
        merge_active(model)
    QuantizeConfig(targets=("mixer.*",), block=32).apply(model)
    LoRAConfig(rank=2).apply(model)
    with pytest.raises(UserError, match=r"blocks\.0\.mixer\.qkv has fewer bits .* onefold merge"):
        merge_active(model)
    assert not model.switch.replaced
    assert not can_be_merged(model, 1e9)


def test_the_only_adapter_of_a_model_that_writes_is_merged_where_that_pays():
    network = small(llama2("7b"))
    LoRAConfig(rank=2).apply(network)
    model = Model(Loaded(network.config, rough(network), None))
    beside, own = model.logits(IDS), {name: p.clone() for name, p in network.named_parameters()}
    short = model.begin([1, 2], model.sampling({"max_new_tokens": 4}))
    model.finish([short], model.sampling({}))
    assert not network.switch.merged
    sampling = model.sampling({"max_new_tokens": 20})
    rows = [model.begin([1, 2], sampling) for _ in range(2)]
    model.finish(rows[:1], sampling)
    assert network.switch.merged
    model.unmerge()
    for _ in model.run(rows[1:], sampling):
        pass
    assert network.switch.merged
    assert rows[0].ids == rows[1].ids
    assert rows[0].ids[:4] == short.ids
    model.use(None)
    model.use("adapter")
    assert torch.equal(model.logits(IDS), beside)
    assert all(torch.equal(p, own[name]) for name, p in network.named_parameters())
