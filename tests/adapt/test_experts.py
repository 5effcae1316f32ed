"""Adapters and fewer bits on experts: each expert is to be what a linear layer of its own would be."""

import pytest
import torch

from onefold.adapt.every import adapt
from onefold.adapt.lora import LoRAConfig
from onefold.adapt.merge import can_be_merged, is_adapted, merge, merge_active
from onefold.adapt.quantize import QuantizeConfig
from onefold.adapt.surgery import Switch
from onefold.core.errors import UserError
from onefold.models import families
from onefold.nn.linear import Linear
from onefold.nn.quantized import QuantizedLinear
from onefold.nn.sparse.experts import GroupedLinear
from onefold.nn.sparse.quantized import QuantizedGroupedLinear
from onefold.training.estimate import parameter_bytes
from onefold.training.optimizers.optim import MuonConfig

IDS = torch.arange(24).view(2, 12)
SMALL = {"vocab": 61, "width": 16, "depth": 2, "context": 32, "block.mixer.heads": 4, "block.mixer.kv_heads": 2}
EXPERTS = {"block.ffn.experts": 3, "block.ffn.expert.width": 24}
ENDS = torch.tensor([4, 4, 9], dtype=torch.int32)  # the second reads nothing, and nobody the last two of 11 rows


def mixture(**changes):
    torch.manual_seed(0)
    return families.mixtral().but({**SMALL, **EXPERTS, **changes}).build()


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def rough(model):
    for parameter in trained(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def grouped(bias=True):
    torch.manual_seed(0)
    layer = GroupedLinear(3, 64, 8, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


def expert(layer, e):
    """A linear layer of one expert's own."""
    own = Linear(64, 8, bias=layer.bias is not None)
    own.weight.data.copy_(layer.weight[e])
    if layer.bias is not None:
        own.bias.data.copy_(layer.bias[e])
    return own


def same(layer, experts, trains=()):
    """Outputs, gradients by x, and by (tensor of all, tensor of each)."""
    x = torch.randn(11, 64, requires_grad=True)
    y = layer(x, ENDS)
    wanted = torch.cat([own(rows) for own, rows in zip(experts, (x[:4], x[4:4], x[4:9]), strict=True)])
    torch.testing.assert_close(y[:9], wanted)
    assert not y[9:].any()
    leaves = [x, *(whole for whole, _ in trains)]
    found = torch.autograd.grad(y.square().sum(), leaves)
    for (_, each), gradient in zip(trains, found[1:], strict=True):
        wanted_gradients = torch.autograd.grad(wanted.square().sum(), [*each], retain_graph=True, allow_unused=True)
        given = [torch.zeros_like(p) if g is None else g for p, g in zip(each, wanted_gradients, strict=True)]
        torch.testing.assert_close(gradient, torch.stack(given))
    torch.testing.assert_close(found[0], torch.autograd.grad(wanted.square().sum(), x)[0])


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_quantised_experts_are_quantised_linear_layers(scheme):
    layer = grouped()
    own = QuantizedGroupedLinear(layer, scheme)
    alone = [QuantizedLinear(expert(layer, e), scheme) for e in range(3)]
    same(own, alone)
    assert torch.equal(own.dense(), torch.stack([one.dense() for one in alone]))
    assert own.bytes == sum(one.bytes for one in alone)


@pytest.mark.parametrize("config", [LoRAConfig(rank=3), LoRAConfig(rank=2, rslora=True, dora=True)])
@pytest.mark.parametrize("quantized", [False, True])
def test_adapters_of_experts_are_those_of_linear_layers(config, quantized):
    layer = grouped()
    alone = [expert(layer, e) for e in range(3)]
    model, others = torch.nn.ModuleList([layer]), torch.nn.ModuleList(alone)
    steps = (*([QuantizeConfig(targets=("*",))] if quantized else []), config.model_copy(update={"targets": ("*",)}))
    (layer,), alone = rough(adapt(model, steps)), adapt(others, steps)
    whole = {name.rpartition(".")[2]: p for name, p in layer.named_parameters() if ".adapters" in f".{name}"}
    each = {name: [] for name in whole}
    for e, own in enumerate(alone):
        for name, p in own.named_parameters():
            if (leaf := name.rpartition(".")[2]) in whole and "adapters" in name:
                p.data.copy_(whole[leaf][e])
                each[leaf].append(p)
    assert len(whole) == 2 + config.dora
    same(layer, alone, [(whole[leaf], each[leaf]) for leaf in whole])
    torch.testing.assert_close(layer.dense(), torch.stack([own.dense() for own in alone]))


def test_a_mixture_is_adapted_and_merged_again():
    model = mixture().eval()
    assert not is_adapted(model)
    before, router = model(IDS), model.blocks[0].ffn.router.weight.clone()
    LoRAConfig(rank=2, targets=("experts.gate", "experts.out")).apply(model)
    torch.testing.assert_close(model(IDS), before)
    names = {name.partition(".adapters.")[2] for name in trained(model)}
    assert names == {f"adapter.{part}.{ab}" for part in ("gate", "whole") for ab in "ab"}
    assert all(p.shape[0] == 3 for p in trained(model).values())
    wanted = rough(model)(IDS)
    assert (wanted - before).abs().max() > 0.01
    assert can_be_merged(model, 1e9)
    merge_active(model)
    torch.testing.assert_close(model(IDS), wanted, atol=1e-5, rtol=1e-4)
    model.switch.unmerge()
    torch.testing.assert_close(model(IDS), wanted, atol=0, rtol=0)
    merged = merge(model)
    torch.testing.assert_close(merged(IDS), wanted, atol=1e-5, rtol=1e-4)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in mixture().named_parameters()}
    assert torch.equal(merged.blocks[0].ffn.router.weight, router)
    assert isinstance(merged.switch, Switch)


def test_everything_in_blocks_means_experts_but_no_router():
    model = adapt(mixture(), (QuantizeConfig(), LoRAConfig(rank=2)))
    bases = [m for m in model.modules() if isinstance(m, QuantizedGroupedLinear)]
    assert len(bases) == 4  # gate and up as one, out, of two layers
    routers = [p for name, p in model.named_parameters() if "router" in name]
    assert len(routers) == 2
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in routers)
    loss = rough(model)(IDS).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in trained(model).values())
    wanted = model(IDS)
    merged = merge(model)
    torch.testing.assert_close(merged(IDS), wanted, atol=1e-4, rtol=1e-3)
    assert not is_adapted(merged)
    with pytest.raises(UserError, match="'router' fits no matrix of the model"):
        LoRAConfig(targets=("router",)).apply(mixture())


@pytest.mark.parametrize("dora", [False, True])
def test_experts_of_fewer_bits_are_made_plain_one_at_a_time(monkeypatch, dora):
    """Never all at once, and each at most twice in a pass: to multiply with, and for the norms of all its parts."""
    model, plain = adapt(mixture(), (QuantizeConfig(targets=("experts.*",)),)), []
    dense = QuantizedLinear.dense
    monkeypatch.setattr(QuantizedLinear, "dense", lambda *given: plain.append(given[0]) or dense(*given))
    monkeypatch.setattr(QuantizedGroupedLinear, "dense", lambda *_: pytest.fail("all experts at once"))
    LoRAConfig(rank=2, dora=dora, targets=("experts.*",)).apply(model)
    parts = {name.split(".adapters.adapter.")[1].split(".")[0] for name in trained(model)}
    assert parts == {"gate", "up", "whole"}
    rough(model)
    plain.clear()
    y = model(IDS)
    assert max(map(plain.count, plain)) == 1 + dora
    plain.clear()
    y.square().mean().backward()
    assert max(map(plain.count, plain)) == 1
    assert all(p.grad.abs().max() > 0 for p in trained(model).values())


def test_memory_is_planned_for_experts_of_fewer_bits():
    config, optimizer = mixture().config, MuonConfig()
    steps = (QuantizeConfig(scheme="int8"), LoRAConfig(rank=2))
    model = adapt(config.build(), steps)
    held = [*model.parameters(), *model.buffers()]
    beside = sum(p.nbytes for p in trained(model).values())
    assert parameter_bytes(config, optimizer, steps) == sum(t.nbytes for t in held) + 2 * beside
    optimizer.build(model).step()
