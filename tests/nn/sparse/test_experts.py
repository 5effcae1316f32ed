"""Experts against a loop over tokens, and routers against their formulas."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.nn.feedforward import GatedMLPConfig, MLPConfig
from onefold.nn.own_losses import listening
from onefold.nn.sparse import fused, grouped
from onefold.nn.sparse.experts import Experts, ExpertsConfig
from onefold.nn.sparse.routing import (
    ExpertChoiceConfig,
    GShardConfig,
    NoisyTopKConfig,
    SwitchConfig,
    TopKConfig,
    by_expert,
)

D, E, GATED = 6, 5, GatedMLPConfig(width=7)


def layer(seed: int = 0, **settings) -> Experts:
    torch.manual_seed(seed)
    made = ExpertsConfig(**{"experts": E, "expert": GATED, **settings}).build(D)
    for parameter in made.parameters():  # routers that are sure of something, biases that show
        nn.init.normal_(parameter, std=0.5)
    return made


def single(made: Experts, e: int, x: Tensor) -> Tensor:
    """One expert by itself."""
    inner = made.experts.gate_up if made.experts.gated else made.experts.up
    h = F.linear(x, inner.weight[e], None if inner.bias is None else inner.bias[e])
    if made.experts.gated:
        gate, up = h.chunk(2, -1)
        h = F.silu(gate) * up
    else:
        h = F.gelu(h)
    return F.linear(h, made.experts.out.weight[e], None if made.experts.out.bias is None else made.experts.out.bias[e])


def looped(made: Experts, x: Tensor, choices: list[list[tuple[int, Tensor]]]) -> Tensor:
    """choices: of each token, its experts and their weights."""
    rows = x.flatten(0, 1)
    sums = [sum((w * single(made, e, row) for e, w in chosen), torch.zeros(D)) for row, chosen in zip(rows, choices)]
    return torch.stack(sums).view_as(x)


def likeliest(made: Experts, x: Tensor, k: int, normalised: bool) -> list[list[tuple[int, Tensor]]]:
    found = []
    for row in x.flatten(0, 1):
        p = (made.router.weight @ row).softmax(0)
        top = p.argsort(descending=True)[:k].tolist()
        total = sum(p[e] for e in top) if normalised else 1.0
        found.append([(e, p[e] / total) for e in top])
    return found


@pytest.mark.parametrize("expert", [GATED, MLPConfig(width=9)], ids=["gated", "biased"])
@pytest.mark.parametrize(
    ("router", "k", "normalised"),
    [(TopKConfig(), 2, True), (TopKConfig(k=3, normalise=False), 3, False), (SwitchConfig(jitter=0), 1, False)],
    ids=["mixtral", "unnormalised", "switch"],
)
def test_it_is_a_loop_over_tokens_and_so_are_its_gradients(expert, router, k, normalised):
    made = layer(expert=expert, router=router)
    x = torch.randn(2, 11, D, requires_grad=True)
    weigh = torch.randn(2, 11, D)
    expected = looped(made, x, likeliest(made, x, k, normalised))
    wanted = torch.autograd.grad((expected * weigh).sum(), [x, *made.parameters()])
    got = made(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((got * weigh).sum(), [x, *made.parameters()])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("expert", [GATED, MLPConfig(width=9)], ids=["gated", "biased"])
@pytest.mark.parametrize("frozen", ["", "inner", "out"])
def test_both_products_at_once_are_one_after_the_other(expert, frozen, monkeypatch):
    """Also in several parts, with experts and last rows that nobody has, and where not all is trained."""
    monkeypatch.setattr(fused, "ROWS", 3)
    mlp = layer(expert=expert).experts
    for name, parameter in mlp.named_parameters():
        parameter.requires_grad_(not frozen or (frozen == "out") != name.startswith("out"))
    x, ends = torch.randn(12, D, requires_grad=True), torch.tensor([4, 4, 5, 11, 11])
    weigh, found = torch.randn(12, D), []
    for way in (fused.suits, lambda *_: False):
        monkeypatch.setattr(fused, "suits", way)
        y = mlp(x, ends)
        assert ("GroupedMLP" in type(y.grad_fn).__name__) == (not found)
        found.append(
            (y, *torch.autograd.grad((y * weigh).sum(), [x, *(p for p in mlp.parameters() if p.requires_grad)]))
        )
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_experts_that_choose_take_equally_many_tokens_each():
    made = layer(router=ExpertChoiceConfig(each=1.5))
    x = torch.randn(2, 10, D)
    p = (x.flatten(0, 1) @ made.router.weight.T).softmax(-1)
    chosen = [[] for _ in p]
    for e in range(E):
        for token in p[:, e].argsort(descending=True)[: math.ceil(1.5 * 20 / E)].tolist():
            chosen[token].append((e, p[token, e]))
    torch.testing.assert_close(made(x), looped(made, x, chosen), atol=1e-5, rtol=1e-5)
    with listening(made) as told:
        made.eval()(x)
    assert told[""][0].figures["dropped"].item() == pytest.approx(sum(not c for c in chosen) / 20)


def test_full_experts_leave_out_later_tokens_and_second_choices_first():
    experts = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])
    weights = torch.arange(8.0).view(4, 2)
    routes = by_expert(weights, experts, 3, capacity=0.75)  # 0.75 · 8 / 3: two each
    starts = [0, *routes.ends.tolist()]
    kept = [routes.tokens[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert kept == [[0, 1], [3, 0], [2]]  # token 2 and the second choice of 3 find 0 full, that of token 1 finds 1 full
    assert routes.weights[: starts[-1]].tolist() == [0, 2, 6, 1, 5]
    assert routes.dropped.item() == pytest.approx(3 / 8)
    assert routes.load.tolist() == pytest.approx([4 / 8, 3 / 8, 1 / 8])


def test_what_is_dropped_adds_nothing_and_is_told_in_training_only():
    made = layer(router=SwitchConfig(jitter=0), capacity=0.5)
    x = torch.randn(1, 20, D, requires_grad=True)
    with listening(made) as told:
        y = made(x)
        with torch.no_grad():
            whole = made.eval()(x)
    trained, evaluated = (call.figures for call in told[""])
    silent = (y[0] == 0).all(-1)
    assert silent.float().mean().item() == pytest.approx(trained["dropped"].item())
    assert 0 < trained["dropped"] < 1
    assert evaluated["dropped"] == 0
    assert set(evaluated) == {"dropped", "load"}
    assert told[""][1].losses == {}
    torch.testing.assert_close(y[0, ~silent], whole[0, ~silent])
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope[0, silent] == 0).all()


def test_an_expert_that_nobody_asks_is_told():
    made = layer(router=SwitchConfig(jitter=0))
    with torch.no_grad():
        made.router.weight[1:] = -made.router.weight[0]
    x = made.router.weight[0].detach() + 0.1 * torch.randn(1, 12, D)
    with listening(made) as told:
        made(x)
    figures = told[""][0].figures
    assert figures["idle"].item() == pytest.approx(4 / 5)
    assert figures["busiest"].item() == pytest.approx(5)


def test_balance_and_z_losses_are_their_formulas():
    made = layer(router=TopKConfig(balance=0.3, z_loss=0.2))
    x = torch.randn(3, 8, D)
    with listening(made) as told:
        made(x)
    logits = x.flatten(0, 1) @ made.router.weight.T
    p = logits.softmax(-1)
    chosen = F.one_hot(p.topk(2, -1).indices, E).float()  # [N, 2, E]
    (balance, a), (z, b) = (told[""][0].losses[name] for name in ("balance", "router_z"))
    assert (a, b) == (0.3, 0.2)
    torch.testing.assert_close(balance, E * (chosen.mean((0, 1)) * p.mean(0)).sum())
    torch.testing.assert_close(z, logits.logsumexp(-1).square().mean())


def test_the_balance_is_that_of_mixtral_but_for_k():
    transformers = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    made = layer(router=TopKConfig(k=3))
    x = torch.randn(2, 9, D)
    with listening(made) as told:
        made(x)
    logits = x.flatten(0, 1) @ made.router.weight.T
    theirs = transformers.load_balancing_loss_func((logits,), E, 3)
    torch.testing.assert_close(3 * told[""][0].losses["balance"][0], theirs)


def test_second_experts_of_gshard_are_drawn_by_their_weight():
    router = GShardConfig().build(D, 3)
    with torch.no_grad():
        router.weight.zero_()[:, 0] = torch.tensor([math.log(0.8 / 0.9), math.log(0.1 / 0.9), -20.0])
    x = torch.zeros(4000, D)
    x[:, 0] = 1
    torch.manual_seed(0)
    routes, _ = router(x)
    assert routes.ends[0] == 4000  # the first is sure
    assert (routes.ends[1] - routes.ends[0]) / 4000 == pytest.approx(2 / 9, abs=0.03)
    assert routes.dropped == 0
    assert router.eval()(x)[0].ends[-1] == 8000


def test_noisy_routers_draw_as_often_as_their_loss_says():
    """The chance that the load loss counts with is how often the expert is chosen, over noise of its own."""
    router = NoisyTopKConfig(k=2).build(D, E)
    nn.init.normal_(router.weight, std=0.5)
    nn.init.normal_(router.noise_scale, std=0.5)
    x = torch.randn(1, D).expand(6000, D)
    torch.manual_seed(1)
    routes, losses = router(x)
    often = routes.load * 2
    variation = (often.var(correction=0) / often.mean() ** 2).item()
    assert losses["load"][0].item() == pytest.approx(variation, rel=0.1)
    assert set(losses) == {"importance", "load"}
    assert losses["load"][1] == 0.1
    counts = torch.diff(router.eval()(x)[0].ends, prepend=torch.zeros(1, dtype=torch.int32))
    assert sorted(counts.tolist()) == [0, 0, 0, 6000, 6000]


def test_shared_and_residual_experts():
    plain, added = layer(), layer(shared=MLPConfig(width=4))
    x = torch.randn(2, 5, D)
    added.router.load_state_dict(plain.router.state_dict())
    added.experts.load_state_dict(plain.experts.state_dict())
    torch.testing.assert_close(added(x), plain(x) + added.shared(x))
    mixed = layer(shared=MLPConfig(width=4), mixed=True)
    for name in ("router", "experts", "shared"):
        getattr(mixed, name).load_state_dict(getattr(added, name).state_dict())
    share = mixed.mix(x).softmax(-1)
    torch.testing.assert_close(mixed(x), share[..., :1] * plain(x) + share[..., 1:] * mixed.shared(x))


def test_routers_stay_fp32_under_autocast():
    made = layer()
    x = torch.randn(2, 9, D)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
        routes, _ = made.router(x.flatten(0, 1).bfloat16())
    assert y.dtype == torch.bfloat16
    assert routes.weights.dtype == torch.float32
    torch.testing.assert_close(y.float(), made(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router": {"kind": "top_k", "k": 6}}, "cannot see 6 of 5 experts"),
        ({"capacity": 0}, "greater than 0"),
        ({"capacity": 0.05}, "capacity 0.05 drops nearly everything: 1 to 2 is usual, null drops nothing"),
        ({"router": {"kind": "top_k", "k": 1}}, "normalise=false"),
        ({"router": "expert_choice", "capacity": 1.0}, "router.each"),
        ({"mixed": True}, "`shared`, which is missing"),
        ({"router": "swich"}, "kind must be one of"),
    ],
)
def test_bad_settings_are_told(changes, words):
    with pytest.raises(UserError, match=words):
        ExpertsConfig.from_dict({"experts": 5, "expert": {"kind": "gated", "width": 8}, **changes})


@pytest.mark.parametrize("leaves", [True, False])
def test_what_a_kernel_leaves_unwritten_is_zero(leaves, monkeypatch):
    def unwritten(a, b, offs):
        spans = list(itertools.pairwise([0, *offs.tolist()]))
        if b.ndim == 2:  # a matrix for each span
            return torch.stack([a[:, i:j] @ b[i:j] if j > i else a[:, :1] * b[:1] * torch.nan for i, j in spans])
        last = spans[-1][1]
        parts = [a[i:j] @ matrix for (i, j), matrix in zip(spans, b)]
        return torch.cat((*parts, a[last:, :1] * torch.full((b.shape[2],), torch.nan)))

    if leaves:
        monkeypatch.setattr(grouped.F, "grouped_mm", unwritten, raising=False)
    x, weight = torch.randn(24, 8).requires_grad_(), torch.randn(3, 16, 8).requires_grad_()
    ends = torch.tensor([8, 8, 16], dtype=torch.int32)
    found = []
    for product in (grouped._by_kernel, grouped._one_by_one):
        y = product(x, weight, ends)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [None, 0.5])
def test_cuda_kernels_are_the_loop(capacity):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    torch.manual_seed(0)
    config = ExpertsConfig(experts=8, expert=GatedMLPConfig(width=64), capacity=capacity)
    made = config.build(32).cuda().bfloat16()
    x = torch.randn(2, 100, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    results = []
    for kernel in (grouped._by_kernel, grouped._one_by_one):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grouped, "_has_kernel", lambda *_, by=kernel: by is grouped._by_kernel)
            y = made(x)
            results.append((y, *torch.autograd.grad(y.float().square().sum(), (x, *made.experts.parameters()))))
    for got, expected in zip(*results):
        torch.testing.assert_close(got.float(), expected.float(), atol=0.05, rtol=0.05)
