"""State spaces: kernels are those of a plain scan, the matrices are HiPPO's, nothing leaks between packed texts."""

import math

import pytest
import torch

from onefold.core.errors import UserError
from onefold.nn.attention import Layout
from onefold.nn.states.hippo import diagonal, legs
from onefold.nn.states.long_conv import convolve, texts
from onefold.nn.states.ssm import S4Config, S4DConfig
from onefold.nn.states.state_spaces import DiagonalStateSpace, LowRankStateSpace, StateSpace

DT = (1e-3, 1e-1)


def both(half: torch.Tensor) -> torch.Tensor:
    """A number of each conjugate pair, and the other one."""
    return torch.cat((half, half.conj()), -1)


def dense(kernel: StateSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, B, C of each channel as whole matrices."""
    if isinstance(kernel, DiagonalStateSpace):
        _, A, C = kernel.parts(torch.float64)
        return torch.diag_embed(both(A)), torch.ones_like(both(A)), both(C[0])
    _, A, P, B, C = kernel._double()
    P = both(P)
    return torch.diag_embed(both(A)) - P[..., :, None] * P[..., None, :].conj(), both(B), both(C[0])


def scanned(kernel: StateSpace, x: torch.Tensor) -> torch.Tensor:
    """[T, D] → [T, D]: each channel's state space as a dense matrix, discretised as its paper says, token by token."""
    A, B, C = dense(kernel)
    step, one = kernel.log_dt.double().exp()[:, None, None], torch.eye(A.shape[-1])
    if isinstance(kernel, DiagonalStateSpace):
        forward = torch.linalg.matrix_exp(step * A)
        read = torch.linalg.solve(A, (forward - one) @ B[..., None])[..., 0]
    else:
        inverse = torch.linalg.inv(one - step / 2 * A)
        forward, read = inverse @ (one + step / 2 * A), (inverse @ (step * B[..., None]))[..., 0]
    h, found = torch.zeros_like(B), []
    for token in x.double():
        h = (forward @ h[..., None])[..., 0] + read * token[:, None]
        found.append((C * h).sum(-1).real + kernel.D.double() * token)
    return torch.stack(found)


def kernels() -> dict[str, StateSpace]:
    torch.manual_seed(0)
    made = {name: DiagonalStateSpace(3, 16, DT, 1, name) for name in ("lin", "inv", "legs")}
    return made | {"s4": LowRankStateSpace(3, 16, DT, 1)}


@pytest.mark.parametrize("name", ["lin", "inv", "legs", "s4"])
@torch.no_grad()
def test_kernels_are_those_of_a_scan_with_dense_matrices(name):
    kernel = kernels()[name].double()
    x = torch.randn(300, 3, dtype=torch.float64)
    whole = convolve(x[None], kernel(300))[0]
    torch.testing.assert_close(whole, scanned(kernel, x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("config", [S4DConfig(), S4Config()])
@torch.inference_mode()
def test_recurrence_equals_convolution_over_4096_tokens(config):
    torch.manual_seed(0)
    kernel, x = config.build(2).kernel, torch.randn(1, 4096, 2)
    state = kernel.init_state(1, None, torch.float32)
    found = torch.cat(
        [kernel.read(x[:, :1000], state)] + [kernel.step(x[:, i], state)[:, None] for i in range(1000, 4096)], 1
    )
    torch.testing.assert_close(found, convolve(x, kernel(4096)), atol=1e-4, rtol=1e-4)


def test_hippo_in_its_basis_is_hippo():
    """A change to an orthonormal basis keeps singular values, and what B and P have to do with A."""
    n = torch.arange(12, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    A = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
    values, P, B = map(both, legs(12))
    ours = torch.diag(values) - P[:, None] * P.conj()
    torch.testing.assert_close(torch.linalg.svdvals(ours), torch.linalg.svdvals(A))
    for power in range(4):
        want = root @ torch.linalg.matrix_power(A, power) @ root
        torch.testing.assert_close((B.conj() @ torch.linalg.matrix_power(ours, power) @ B).real, want)
    assert torch.allclose(diagonal("inv", 64)[0].imag, torch.tensor(64 / math.pi * 63, dtype=torch.float64))


@pytest.mark.parametrize("directions", [1, 2])
def test_convolution_is_the_sum_it_says_with_gradients(directions):
    torch.manual_seed(0)
    x = torch.randn(2, 21, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(directions, 3, 21, dtype=torch.float64, requires_grad=True)
    found = torch.zeros(2, 21, 3, dtype=torch.float64)
    for t in range(21):
        for s in range(21):
            found[:, t] += weights[0, :, t - s] * x[:, s] if s <= t else 0
            found[:, t] += weights[1, :, s - t - 1] * x[:, s] if s > t and directions == 2 else 0
    toward = torch.randn_like(found)
    want = torch.autograd.grad((found * toward).sum(), (x, weights))
    got = convolve(x, weights)
    torch.testing.assert_close(got, found)
    for a, b in zip(torch.autograd.grad((got * toward).sum(), (x, weights)), want):
        torch.testing.assert_close(a, b)


def test_packed_texts_are_read_apart():
    torch.manual_seed(0)
    lengths = [[3, 40, 1, 20], [64], [17, 47]]
    segments = torch.stack([torch.cat([torch.full((n,), i) for i, n in enumerate(row)]) for row in lengths])
    x = torch.randn(3, 64, 5, requires_grad=True)
    mixer = S4DConfig(states=8, causal=False).build(5)
    whole = mixer(x, Layout(torch.arange(64)[None], segments=segments))
    for row, parts in enumerate(lengths):
        for piece, text in zip(whole[row].split(parts), x[row].split(parts)):
            alone = mixer(text[None], Layout(torch.arange(len(text))[None]))[0]
            torch.testing.assert_close(piece, alone, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(whole[0, 3:43].sum(), x)
    assert gradient[0, :3].abs().sum() == gradient[0, 43:].abs().sum() == gradient[1:].abs().sum() == 0
    assert {bucket.places.shape[1] for bucket in texts(segments)} == {16, 32, 64}


@pytest.mark.parametrize("config", [S4DConfig(states=8), S4Config(states=8)])
def test_under_autocast_kernels_stay_exact(config):
    torch.manual_seed(0)
    mixer, x = config.build(4), torch.randn(1, 500, 4)
    layout, found = Layout(torch.arange(500)[None]), []
    mixer.dropout.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    plain = mixer(x, layout)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(x, layout)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(mixed.float(), plain, atol=0.05, rtol=0.05)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # nor is a token by itself read otherwise
        state = mixer.init_state(1, 500)
        mixer(x[:, :490], layout, state)
        written = [mixer(x[:, i : i + 1], layout, state) for i in range(490, 500)]
    assert written[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.stack(found[3:], 1), found[0][:, 490:], atol=1e-4, rtol=1e-4)


def test_states_come_in_pairs_and_a_layer_that_looks_ahead_cannot_write():
    with pytest.raises(UserError, match="even number"):
        S4DConfig.from_dict({"states": 5})
    with pytest.raises(UserError, match="rising"):
        S4DConfig.from_dict({"dt": [0.1, 0.001]})
    with pytest.raises(UserError, match="looks ahead"):
        S4DConfig(causal=False).build(4).init_state(1, 8)


@pytest.mark.parametrize("config", [S4DConfig(states=8, causal=False), S4Config(states=8)])
def test_shapes_alone_are_enough_to_count_what_a_layer_costs(config):
    with torch.device("meta"):
        mixer, x = config.build(4), torch.empty(2, 30, 4, requires_grad=True)
        layout = Layout(torch.arange(30)[None], segments=torch.zeros(2, 30, dtype=torch.long))
        mixer(x, layout).sum().backward()
    assert x.grad.shape == x.shape
