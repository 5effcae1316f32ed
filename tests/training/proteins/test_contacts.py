import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import AMINO_ACIDS, AminoAcids
from onefold.infer.evaluation.contact_precision import precision
from onefold.infer.proteins import contact_maps
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from onefold.models.encoder_families import esm1b
from onefold.training.proteins.contacts import Example, fit_contacts
from onefold.training.proteins.sparse_regression import fit_logistic


def problem(rows=400, features=12):
    generator = np.random.default_rng(0)
    found = generator.normal(size=(rows, features)) * generator.uniform(0.01, 2, features) + 0.3
    chance = 1 / (1 + np.exp(-(found[:, :3] @ [1.5, -2, 1] - 1)))
    return found, generator.random(rows) < chance


@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_the_minimum_is_sklearns(strength):
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = problem()
    oracle = linear.LogisticRegression(solver="saga", l1_ratio=1, C=strength, tol=1e-10, max_iter=100_000)
    oracle.fit(features, labels)
    weights, bias = fit_logistic(features.astype(np.float32), labels, strength)
    np.testing.assert_allclose(weights, oracle.coef_[0], atol=2e-4)
    assert bias == pytest.approx(oracle.intercept_[0], abs=2e-4)
    assert ((weights == 0) == (oracle.coef_[0] == 0)).all()


def test_no_step_away_from_what_is_found_costs_less():
    features, labels = problem()
    weights, bias = fit_logistic(features, labels, 0.2)

    def cost(weights, bias):
        logits = np.where(labels, 1, -1) * (features @ weights + bias)
        return np.logaddexp(0, -logits).sum() + abs(weights).sum() / 0.2

    least, generator = cost(weights, bias), np.random.default_rng(1)
    for _ in range(200):
        assert cost(weights + generator.normal(size=12) * 1e-2, bias + generator.normal() * 1e-2) > least


def test_the_head_that_follows_contacts_gets_the_weight(monkeypatch):
    torch.manual_seed(0)
    small = {"width": 8, "depth": 2, "context": 42, "block.mixer.heads": 2, "block.ffn.width": 8}
    config = esm1b().but({**small, "embed.position.context": 44})
    encoder = TextEncoder(Loaded(config, config.build().eval(), AminoAcids().build()))
    generator = np.random.default_rng(0)
    texts = ["".join(AMINO_ACIDS[i] for i in generator.integers(20, size=40)) for _ in range(3)]
    maps = [np.triu(generator.random((40, 40)) < 0.1, 6) for _ in texts]
    maps = [touch | touch.T for touch in maps]

    def attention(tokens, residues, positions=None, segments=None):
        (which,) = (i for i, text in enumerate(texts) if encoder.tokenizer.encode(text) == tokens[0, 1:-1].tolist())
        noise = torch.from_numpy(np.random.default_rng(which).normal(size=(4, 42, 42))).float()
        noise[2, 1:-1, 1:-1] += 3 * torch.from_numpy(maps[which])
        return iter(noise[None].split(2, dim=1))

    monkeypatch.setattr(encoder.network, "coupled_attention", attention)
    known = np.ones(40, bool)
    known[:5] = False
    wrong = maps[1].copy()
    wrong[:5] = wrong[:, :5] = True  # nobody knows, so nobody may learn from it
    assert fit_contacts(encoder, [Example(texts[0], maps[0]), Example(texts[1], wrong, known)], strength=0.05) >= 1
    assert encoder.network.regression.weight.argmax() == 2
    (found,) = contact_maps(encoder, texts[2:])
    assert precision(found.numpy(), maps[2], share=0.5) > 0.7


def test_structures_without_contacts_are_refused():
    config = esm1b().but({"width": 8, "depth": 1, "block.mixer.heads": 2, "block.ffn.width": 8})
    encoder = TextEncoder(Loaded(config, config.build().eval(), AminoAcids().build()))
    with pytest.raises(UserError, match="no contacts"):
        fit_contacts(encoder, [Example("ACDEFGHIKL", np.zeros((10, 10), bool))])
    without = config.but({"contacts": False})
    encoder = TextEncoder(Loaded(without, without.build().eval(), AminoAcids().build()))
    with pytest.raises(UserError, match="no contact head"):
        fit_contacts(encoder, [])
