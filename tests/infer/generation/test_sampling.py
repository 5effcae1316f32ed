"""Distributions against a plain numpy reference by exact probabilities, and the sampler against them by χ²."""

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.generation.sampling import Sampler, Sampling, likeliest, probabilities, randomness


def reference(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, seen=()):
    """One row, one rule after another, in fp64."""
    x = np.array(logits, dtype=np.float64)
    for token in seen:
        x[token] = x[token] / repetition_penalty if x[token] > 0 else x[token] * repetition_penalty
    x = x / temperature
    alive = np.ones(len(x), dtype=bool)

    def softmax():
        e = np.where(alive, np.exp(x - x[alive].max()), 0.0)
        return e / e.sum()

    if top_k:
        alive[np.argsort(-x)[top_k:]] = False
    if top_p:
        p, mass = softmax(), 0.0
        for token in np.argsort(-p):
            if mass >= top_p:
                alive[token] = False
            mass += p[token]
    if min_p:
        p = softmax()
        alive &= p >= min_p * p.max()
    return softmax()


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_k": 0},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.8},
    {"top_k": 1000, "top_p": 0.5},
    {"top_p": 0.9, "min_p": 0.1, "temperature": 1.7},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8, "repetition_penalty": 1.4},
    {"repetition_penalty": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_match_numpy(settings):
    logits = np.random.default_rng(0).normal(0, 3, (5, 40)).astype(np.float32)
    seen = torch.zeros(5, 40, dtype=torch.bool)
    seen[:, :6] = True
    settings = {"temperature": 1.0, **settings}
    got = probabilities(torch.from_numpy(logits), Sampling(**settings), seen).numpy()
    for row in range(5):
        np.testing.assert_allclose(got[row], reference(logits[row], seen=range(6), **settings), atol=2e-6)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.5, 6.0])
def test_the_nucleus_of_a_large_vocabulary(top_p, spread):
    """Both when a few hundred tokens reach p and when it takes thousands; rows of both kinds in one batch too."""
    logits = np.random.default_rng(0).normal(0, spread, (2, 5000)).astype(np.float32)
    logits[1] *= 3
    got = probabilities(torch.from_numpy(logits), Sampling(temperature=1.0, top_p=top_p)).numpy()
    for row in range(2):
        want = reference(logits[row], top_p=top_p)
        # In fp32 the sum may reach p a token earlier or later than in fp64.
        assert abs((got[row] > 0).sum() - (want > 0).sum()) <= 1
        np.testing.assert_allclose(got[row], want, atol=1e-4)


def test_greedy_puts_everything_on_the_likeliest():
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, -1.0, 4.9]])
    want = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=1)):
        assert torch.equal(probabilities(logits, sampling), want)


def draws(sampling: Sampling, logits: torch.Tensor, rows: int) -> np.ndarray:
    """One draw from each of `rows` equal rows."""
    prompts = [[0]] * rows
    randoms = [randomness(sampling, [0], copy) for copy in range(rows)]
    return Sampler(prompts, randoms, sampling, 1, len(logits))(logits.expand(rows, -1)).numpy()


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.95}])
def test_samples_follow_the_probabilities(settings):
    logits = torch.from_numpy(np.random.default_rng(3).normal(0, 1.5, 24).astype(np.float32))
    sampling = Sampling(temperature=0.9, seed=11, **settings)
    expected = probabilities(logits[None], sampling)[0].double().numpy()
    n = 20000
    counts = np.bincount(draws(sampling, logits, n), minlength=24)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    chi2 = ((counts - n * expected) ** 2 / (n * expected + ~possible))[possible].sum()
    freedom = possible.sum() - 1
    # Wilson–Hilferty: χ² / f is nearly normal in its cube root; 4 standard deviations.
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    assert abs(z) < 4


def test_the_repetition_penalty_remembers_prompt_and_output():
    sampling = Sampling(repetition_penalty=100.0)
    sampler = Sampler([[2], [0]], [None, None], sampling, 4, 4)
    logits = torch.tensor([[3.0, 2.0, 9.0, 1.0]]).expand(2, -1)
    assert [sampler(logits).tolist() for _ in range(2)] == [[0, 2], [1, 1]]


def test_randomness_depends_on_seed_prompt_and_copy_alone():
    def first(seed, prompt, copy):
        return randomness(Sampling(seed=seed), prompt, copy).random()

    assert first(1, [1, 2], 0) == first(1, [1, 2], 0)
    others = [(2, [1, 2], 0), (1, [2, 1], 0), (1, [1, 2], 1), (-1, [1, 2], 0)]
    assert len({first(1, [1, 2], 0), *(first(*other) for other in others)}) == 5
    assert first(None, [1], 0) != first(None, [1], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling.from_dict(settings)


def test_one_stop_string_is_as_good_as_a_list():
    assert Sampling(stop="a").stop == Sampling(stop=["a"]).stop == ("a",)
    assert Sampling(stop=None).stop == ()


def test_the_likeliest_is_the_first_of_the_largest():
    random = torch.Generator().manual_seed(0)
    for vocab in (3, 128, 640, 641):
        logits = torch.randint(0, 5, (7, vocab), generator=random).float()  # many ties
        assert torch.equal(likeliest(logits), logits.argmax(1))
        assert torch.equal(likeliest(-logits), (-logits).argmax(1))
