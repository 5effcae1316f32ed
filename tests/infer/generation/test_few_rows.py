import pytest
import torch

from onefold.adapt.every import adapt
from onefold.adapt.lora import LoRAConfig
from onefold.infer.generation import few_rows
from onefold.infer.generation.few_rows import FewRowsExperts, FewRowsLinear, FewRowsNorm, for_decoding
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.linear import Linear
from onefold.nn.norm import RMSNormConfig
from onefold.nn.own_losses import listening
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig, TopKConfig
from tests.infer.small_models import config, decoder


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outward", [10, 64, 192, 193])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2, 1), (1, 2), (3, 1), (16, 1), (2, 9)])
def test_it_is_the_linear_layer(outward, rows, bias, packs):
    linear = Linear(40, outward, bias=bias)
    x = torch.randn(*rows, 40)
    with torch.inference_mode():
        got, want = FewRowsLinear(linear, packs)(x), linear(x)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama2"])
def test_a_model_for_decoding_is_the_model_and_shares_its_weights(family):
    model = decoder(config(family, width=96))
    twin = for_decoding(model)
    if twin is model:
        pytest.skip("only on x86")
    assert any(isinstance(module, FewRowsLinear) for module in twin.modules())
    assert not any(isinstance(module, FewRowsLinear) for module in model.modules())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    for rows, length in ((1, 1), (1, 2), (1, 7), (3, 1), (5, 7)):
        ids = torch.randint(0, 61, (rows, length))
        torch.testing.assert_close(twin(ids), model(ids), atol=2e-5, rtol=1e-4)
    before = twin(ids)
    for parameter in model.parameters():  # an optimizer's step, a merged adapter
        parameter.mul_(1.1)
    assert (twin(ids) - before).abs().max() > 0.1
    torch.testing.assert_close(twin(ids), model(ids), atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("expert", [GatedMLPConfig(width=72), MLPConfig(width=40)], ids=["gated", "biased"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"router": SwitchConfig(), "capacity": 1.0}, {"router": TopKConfig(k=3, normalise=False)}],
    ids=["mixtral", "switch", "unnormalised"],
)
def test_few_tokens_of_a_mixture_are_what_many_are(expert, settings):
    residual = {"shared": expert, "mixed": True} if "capacity" in settings else {}
    ffn = ExpertsConfig(experts=5, expert=expert, **settings, **residual)
    model = decoder(config("llama2", width=96).but({"block.ffn": ffn}))
    twin = for_decoding(model)
    if twin is model:
        pytest.skip("only on x86")
    assert any(isinstance(module, FewRowsExperts) for module in twin.modules())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    for rows, length in ((1, 1), (1, 2), (1, 7), (4, 1), (3, 7)):
        ids = torch.randint(0, 61, (rows, length))
        torch.testing.assert_close(twin(ids), model(ids), atol=1e-4, rtol=1e-4)
    with listening(twin) as told:  # an evaluation hears as much of it
        twin(ids[:, :2])
    assert [len(calls) for calls in told.values()] == [1, 1]


@torch.no_grad()
def test_experts_with_adapters_go_the_usual_way():
    model = decoder(config("llama2", width=96).but({"block.ffn": ExpertsConfig(experts=3, expert=MLPConfig(width=40))}))
    adapt(model, (LoRAConfig(targets=("experts.out",)),))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(0, 61, (1, 2))
    torch.testing.assert_close(for_decoding(model)(ids), model(ids), atol=1e-4, rtol=1e-4)


def test_no_second_copy_of_what_fills_the_memory(monkeypatch):
    model = decoder(config("gpt2", width=96))
    size = sum(p.nbytes for p in model.parameters())
    for memory, packs in ((size * 5, True), (size * 3, False), (0, False)):
        monkeypatch.setattr(few_rows, "_memory", lambda memory=memory: memory)
        twin = for_decoding(model)
        layers = [m for m in twin.modules() if isinstance(m, FewRowsLinear)]
        assert all(layer.packs == packs for layer in layers)


def test_gradients_and_other_types_go_the_usual_way():
    linear = Linear(40, 64)
    x = torch.randn(3, 40, requires_grad=True)
    FewRowsLinear(linear, True)(x).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is not None
    half = decoder(config("gpt2")).bfloat16()
    assert for_decoding(half) is half


def test_it_is_the_norm():
    norm = RMSNormConfig(eps=1e-3).build(40)
    torch.nn.init.normal_(norm.weight)
    for shape in ((3, 1, 40), (1, 1, 40), (2, 5, 40), (40,)):
        x = 0.1 * torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(FewRowsNorm(norm)(x), norm(x))
