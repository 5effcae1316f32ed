"""The optimizers against torch's own and against plain linear algebra."""

import numpy as np
import pytest
import torch
from torch import nn

from onefold.adapt.lora import LoRAConfig
from onefold.core.errors import UserError
from onefold.nn.feedforward import MLPConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.training.optimizers.muon import newton_schulz
from onefold.training.optimizers.optim import AdafactorConfig, AdamWConfig, Group, MuonConfig, SGDConfig
from onefold.training.optimizers.rules import memory_bytes


class Tiny(nn.Module):
    """Named as a decoder's parameters are, with a packed and a stacked matrix."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 8)
        block = nn.Module()
        block.qkv = nn.Linear(8, 20)
        block.packed = {"qkv.weight": (12, 4, 4), "experts": (6, 2)}
        block.out = nn.Linear(12, 8, bias=False)
        block.experts = nn.Parameter(torch.randn(3, 8, 5))
        block.norm = nn.LayerNorm(8)
        self.blocks = nn.ModuleList([block])

    def fill_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator)


def numpy_newton_schulz(g: np.ndarray, iterations: int) -> np.ndarray:
    """The same polynomial, on the singular values."""
    u, s, vt = np.linalg.svd(g.astype(np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ vt


def test_adamw_is_torchs():
    ours, theirs = Tiny(), Tiny()
    a = AdamWConfig(lr=0.01, betas=(0.8, 0.9), weight_decay=0.3).build(ours)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    b = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}], lr=0.01, betas=(0.8, 0.9)
    )
    for step in range(5):
        for model, optimizer in ((ours, a), (theirs, b)):
            model.fill_gradients(step)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 9), (9, 9), (4, 6, 9)])
def test_newton_schulz_is_the_polynomial_of_the_singular_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = newton_schulz(x, 5)
    for got, given in zip(result.reshape(-1, *shape[-2:]), x.reshape(-1, *shape[-2:])):
        np.testing.assert_allclose(got.numpy(), numpy_newton_schulz(given.numpy(), 5), atol=2e-5)
    assert 0.6 < torch.linalg.svdvals(result).median() < 1.25


@pytest.mark.parametrize(("scale", "nesterov"), [("rms", True), ("spectral", False)])
def test_muon_moves_each_matrix_by_itself(scale, nesterov):
    model = Tiny()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    optimizer = MuonConfig(lr=0.02, momentum=0.9, nesterov=nesterov, scale=scale, weight_decay=0.5).build(model)
    momentum = {name: np.zeros_like(w) for name, w in before.items()}
    expected = {name: w.astype(np.float64) for name, w in before.items()}
    parts = {
        "blocks.0.qkv.weight": [np.s_[0:12], np.s_[12:16], np.s_[16:20]],
        "blocks.0.out.weight": [np.s_[:]],
        "blocks.0.experts": [np.s_[e, rows] for e in range(3) for rows in (np.s_[:6], np.s_[6:])],
    }
    for step in range(3):
        model.fill_gradients(step)
        optimizer.step()
        for name, slices in parts.items():
            g = model.get_parameter(name).grad.numpy()
            momentum[name] = 0.9 * momentum[name] + 0.1 * g
            direction = 0.1 * g + 0.9 * momentum[name] if nesterov else momentum[name]
            expected[name] *= 1 - 0.02 * 0.5
            for part in slices:
                m, n = direction[part].shape
                factor = 0.2 * max(m, n) ** 0.5 if scale == "rms" else max(1, m / n) ** 0.5
                expected[name][part] -= 0.02 * factor * numpy_newton_schulz(direction[part], 5)
    for name in parts:
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), expected[name], atol=1e-5)


def test_muon_is_torchs():
    """torch's own works in bfloat16: the same direction to its precision."""
    ours, theirs = nn.Module(), nn.Module()
    for model in (ours, theirs):
        torch.manual_seed(0)
        model.blocks = nn.ModuleList([nn.Linear(48, 32, bias=False)])
    a = MuonConfig(lr=0.01, weight_decay=0.1).build(ours)
    b = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = ours.blocks[0].weight.detach().clone()
    for model, optimizer in ((ours, a), (theirs, b)):
        model.blocks[0].weight.grad = torch.randn(32, 48, generator=torch.Generator().manual_seed(3))
        optimizer.step()
    moved, wanted = (m.blocks[0].weight.detach() - start for m in (ours, theirs))
    assert (moved - wanted).norm() < 0.02 * wanted.norm()
    assert moved.square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)  # the size of an AdamW update


def test_the_table_says_who_goes_where():
    model = Tiny()
    rows = (Group(pattern="embed.*", lr=0.5), Group(pattern="*.out.weight", rule="adamw", decay=2.0))
    optimizer = MuonConfig(lr=0.02, adamw_lr=0.004, weight_decay=0.1, groups=rows).build(model)
    found = {
        name: (group["rule"], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }
    assert found == {
        "embed.weight": ("adamw", 0.002, 0.1),
        "blocks.0.qkv.weight": ("muon", 0.02, 0.1),
        "blocks.0.qkv.bias": ("adamw", 0.004, 0.0),
        "blocks.0.out.weight": ("adamw", 0.004, 0.2),
        "blocks.0.experts": ("muon", 0.02, 0.1),
        "blocks.0.norm.weight": ("adamw", 0.004, 0.0),
        "blocks.0.norm.bias": ("adamw", 0.004, 0.0),
    }


def test_the_schedule_scales_every_group():
    optimizer = MuonConfig(lr=0.02, adamw_lr=0.004).build(Tiny())
    optimizer.schedule(0.25)
    assert optimizer.lr == 0.005
    assert {group["lr"] for group in optimizer.param_groups} == {0.005, 0.001}


def test_frozen_parameters_and_those_without_gradient_stay():
    model = Tiny()
    model.embed.weight.requires_grad_(False)
    optimizer = MuonConfig(weight_decay=0.1).build(model)
    model.fill_gradients(0)
    model.blocks[0].out.weight.grad = model.blocks[0].norm.bias.grad = None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"embed.weight", "blocks.0.out.weight", "blocks.0.norm.bias"}
    assert "embed.weight" not in {name for group in optimizer.param_groups for name in group["names"]}


def test_a_vector_cannot_follow_muon():
    with pytest.raises(UserError, match=r"norm\.weight is no matrix"):
        MuonConfig(groups=(Group(pattern="*.norm.weight", rule="muon"),)).build(Tiny())


@pytest.mark.parametrize("config", [AdamWConfig, MuonConfig, SGDConfig, AdafactorConfig])
def test_a_vector_of_each_expert_is_no_matrix(config):
    """Biases and DoRA's magnitudes: as long as no gradient moves them, they stay what they are."""
    torch.manual_seed(0)
    layer = ExpertsConfig(experts=3, expert=MLPConfig(width=8)).build(4)
    model = nn.ModuleDict({"blocks": nn.ModuleList([layer])})
    LoRAConfig(rank=2, dora=True, also=("*.bias",)).apply(model)
    optimizer = config(weight_decay=0.5, lr=0.1).build(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in trained.items():
        p.grad = torch.zeros_like(p)
        if name.endswith("bias"):
            p.data.fill_(1.0)
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer.step()
    still = {name for name, p in trained.items() if p.ndim < 3}
    assert {name.rpartition(".")[2] for name in still} == {"bias", "magnitude"}
    for name in trained:
        assert torch.equal(trained[name], before[name]) == (name in still or not before[name].any()), name
    rules = {n: group["rule"] for group in optimizer.param_groups for n in group["names"]}
    assert "muon" not in {rules[name] for name in still}
    state = optimizer.named_state()
    if config is AdafactorConfig:  # each number has a square of its own: nothing is factored across experts
        assert all(state[f"{name}.square"].shape == trained[name].shape for name in still)
    with pytest.raises(UserError, match="is no matrix and cannot follow muon"):
        MuonConfig(groups=(Group(pattern="*.magnitude", rule="muon"),)).build(model)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_torchs(nesterov):
    ours, theirs = Tiny(), Tiny()
    theirs.load_state_dict(ours.state_dict())
    optimizer = SGDConfig(lr=0.05, momentum=0.8, nesterov=nesterov, weight_decay=0.1).build(ours)
    matrices, vectors = ([p for p in theirs.parameters() if (p.ndim >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
    reference = torch.optim.SGD(groups, lr=0.05, momentum=0.8, nesterov=nesterov)
    for step in range(3):
        for model in (ours, theirs):
            model.fill_gradients(step)
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q)


def test_adafactor_is_the_one_of_transformers():
    """With every packed matrix by itself, as T5's own are."""
    optimization = pytest.importorskip("transformers.optimization")
    ours, theirs = Tiny(), Tiny()
    a = AdafactorConfig(lr=0.05).build(ours)
    packed = {"blocks.0.qkv.weight": (12, 4, 4), "blocks.0.experts": (6, 2)}
    named = dict(theirs.named_parameters())
    parts = {n: [nn.Parameter(p.detach().clone()) for p in named[n].split(rows, -2)] for n, rows in packed.items()}
    others = [p for n, p in named.items() if n not in packed]
    others += [part for several in parts.values() for part in several]
    b = optimization.Adafactor(others, lr=0.05, scale_parameter=True, relative_step=False, warmup_init=False)
    for step in range(5):
        for model in (ours, theirs):
            model.fill_gradients(step)
        for name, rows in packed.items():
            for part, gradient in zip(parts[name], named[name].grad.split(rows, -2)):
                part.grad = gradient
        a.step()
        b.step()
    for name, p in ours.named_parameters():
        theirs_now = torch.cat(parts[name], -2) if name in packed else named[name]
        torch.testing.assert_close(p, theirs_now, rtol=1e-5, atol=1e-7)


def test_adafactor_keeps_little():
    model = Tiny()
    optimizer = AdafactorConfig().build(model)
    kept = {name: tuple(t.shape) for name, t in optimizer.named_state().items()}
    assert kept["embed.weight.rows"] == (11,)
    assert kept["embed.weight.columns"] == (1, 8)
    assert (kept["blocks.0.qkv.weight.rows"], kept["blocks.0.qkv.weight.columns"]) == ((20,), (3, 8))
    assert (kept["blocks.0.experts.rows"], kept["blocks.0.experts.columns"]) == ((3, 8), (2, 3, 5))
    assert kept["blocks.0.norm.weight.square"] == (8,)
    total = sum(t.nbytes for t in optimizer.named_state().values())
    assert sum(map(memory_bytes, optimizer.param_groups)) == total
