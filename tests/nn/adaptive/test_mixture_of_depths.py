"""A block that some tokens pass by: against a loop over rows, and the plain block where nobody does."""

import copy

import pytest
import torch
import torch.nn.functional as F

from onefold.core.errors import UserError
from onefold.models import families
from onefold.models.transformer import Block, Decoder
from onefold.nn.attention import Layout
from onefold.nn.own_losses import listening

D, T = 16, 12
SMALL = families.llama2().but(
    {
        "vocab": 31,
        "width": D,
        "depth": 2,
        "context": 64,
        "block.mixer": {"heads": 4, "kv_heads": 2},
        "block.ffn.width": 24,
    }
)


def block(**route) -> Block:
    torch.manual_seed(0)
    made = SMALL.block.but({"route": route}).build(D)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def decoder(**route) -> Decoder:
    torch.manual_seed(0)
    model = SMALL.but({"depth": 3, "pattern": [{}, {"route": route}, {}]}).build().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


def plain(made: Block) -> Block:
    twin = copy.copy(made)
    twin._modules = {**made._modules, "route": None}
    return twin


def layout(rows: int = 3, length: int = T) -> Layout:
    return Layout(torch.arange(length).expand(rows, -1))


def looped(made: Block, x: torch.Tensor, chosen: list[list[int]]) -> torch.Tensor:
    """Row by row: those chosen are all the text that there is."""
    out = x.clone()
    for row, places in enumerate(chosen):
        if places:
            own = x[row : row + 1, places]
            r = own @ made.route.router.weight + made.route.router.bias
            changed = plain(made)(own, Layout(torch.tensor([places])))
            out[row, places] = (own + r[..., None] * (changed - own))[0]
    return out


def test_capacity_1_and_weight_1_are_the_plain_block():
    made = block(capacity=1.0).train()
    with torch.no_grad():
        made.route.router.weight.zero_()
        made.route.router.bias.fill_(1)
    x = torch.randn(3, T, D)
    torch.testing.assert_close(made(x, layout()), plain(made)(x, layout()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.eval()(x, layout()), plain(made)(x, layout()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "reading"])
def test_it_is_a_loop_over_rows_and_so_are_its_gradients(training):
    made = block(capacity=0.3).train(training)
    x = torch.randn(3, T, D, requires_grad=True)
    r = x.detach() @ made.route.router.weight.detach() + made.route.router.bias.detach()
    if training:
        chosen = [sorted(row.topk(4).indices.tolist()) for row in r]
    else:
        chosen = [(row > 0).nonzero()[:, 0].tolist() for row in r]
        assert len({len(places) for places in chosen}) > 1
    expected, weigh = looped(made, x, chosen), torch.randn(3, T, D)
    got = made(x, layout())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad((expected * weigh).sum(), [x, *made.parameters()])
    found = torch.autograd.grad((got * weigh).sum(), [x, *made.parameters()])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "reading"])
def test_documents_of_a_row_do_not_see_each_other(training):
    made = block(capacity=0.5).train(training)
    a, b = torch.randn(1, T, D), torch.randn(1, T, D)
    segments = torch.tensor([[0] * 6 + [1] * 6])
    position = torch.arange(6).repeat(2)[None]
    other = torch.cat((b[:, :6], a[:, 6:]), 1)  # another document before the same one
    if training:  # chosen together, so let it be the same tokens
        other[:, :6] = a[:, :6].flip(1)
    got, same = (made(x, Layout(position, segments=segments))[:, 6:] for x in (a, other))
    torch.testing.assert_close(got, same, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made(a, layout(1))[:, 6:], got, atol=1e-3)


@torch.no_grad()
def test_the_cache_keeps_only_those_that_go_through_and_takes_back_any():
    model = decoder(capacity=0.3)
    ids = torch.randint(0, 31, (3, 20), generator=torch.Generator().manual_seed(1))
    state = model.init_state(3, 32)
    model(ids[:, :9], state=state)
    model(ids[:, 9:16].flip(0), state=state)
    state.forget(7)
    parts = [model(ids[:, a:b], state=state) for a, b in ((9, 14), (14, 15), (15, 20))]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids)[:, 9:], atol=2e-5, rtol=1e-4)
    cache = state.layers[1]
    passed = {}
    model.blocks[1].route.router.register_forward_hook(lambda _, __, r: passed.update(n=(r > 0).sum(1)))
    model(ids)
    assert cache.counts.tolist() == passed["n"].tolist()
    assert 0 < min(cache.counts) < max(cache.counts) < 20
    state.reorder(torch.tensor([2, 0, 0]))
    following = model(torch.tensor([[5], [6], [7]]), state=state)
    texts = torch.cat((ids[[2, 0, 0]], torch.tensor([[5], [6], [7]])), 1)
    torch.testing.assert_close(following, model(texts)[:, -1:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("predictor", ["router", "beside"])
def test_the_predictor_learns_whom_training_takes(predictor):
    made = block(capacity=0.25, predictor=predictor, weight=0.5).train()
    x = torch.randn(2, T, D, requires_grad=True)
    with listening(made) as told:
        made(x, layout(2))
    (call,) = told["route"]
    value, weight = call.losses["depth"]
    r = made.route.router(x)
    target = torch.zeros_like(r).scatter(1, r.topk(3, 1).indices, 1.0)
    logits = r if predictor == "router" else made.route.predictor(x)[..., 0]
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(logits, target))
    assert (weight, call.units) == (0.5, 2 * T)
    assert call.figures["passed"] == 0.25
    assert call.figures["predicted"] == ((logits > 0) == target.bool()).float().mean()
    through_text = torch.autograd.grad(value, x, allow_unused=True)[0]
    assert (through_text is None) == (predictor == "beside")


def test_the_network_beside_decides_in_reading_only():
    made = block(capacity=0.25, predictor="beside")
    x = torch.randn(1, T, D)
    with torch.no_grad():
        made.route.predictor[2].weight.zero_()
        made.route.predictor[2].bias.fill_(-1)
    torch.testing.assert_close(made.eval()(x, layout(1)), x)
    assert not torch.allclose(made.train()(x, layout(1)), x)


def test_a_dense_model_begins_one():
    dense = SMALL.build()
    model = SMALL.but({"pattern": [{}, {"route": {}}]}).build()
    model.load_state_dict(model.adopt(dense.state_dict()))
    torch.testing.assert_close(model.blocks[1].mixer.qkv.weight, dense.blocks[1].mixer.qkv.weight)


def test_what_counts_columns_is_refused():
    with pytest.raises(UserError, match="window"):
        SMALL.but({"block.route": {}, "block.mixer.window": 4})
    with pytest.raises(UserError, match="rotary"):
        SMALL.but({"block.route": {}, "block.mixer.position": "alibi"})
    with pytest.raises(UserError, match="prefix"):
        SMALL.but({"block.route": {}, "prefix": True})
    with pytest.raises(UserError, match="capacity"):
        SMALL.but({"block.route.capacity": 1.5})
