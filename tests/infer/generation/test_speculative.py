"""Speculative decoding against the plain loop, and against the distribution that it has to keep."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from onefold.core.errors import UserError
from onefold.infer.generation import engine
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.sampling import Sampling, probabilities
from onefold.infer.generation.speculative import (
    ModelDraft,
    NgramDraft,
    Speculation,
    costs,
    shallow,
    takes_back,
    verify,
    worth,
)
from onefold.models.recurrent.language_model import RecurrentConfig
from tests.infer.small_models import config, decoder

PROMPT = [5, 9, 2, 44, 5, 9, 2, 17, 3, 5, 9]


def written(model, draft, sampling, prompt=PROMPT, seed=0) -> tuple[list[int], Speculation]:
    row, helped = Continuation(prompt, sampling.max_new_tokens, random=np.random.default_rng(seed)), Speculation(draft)
    for _ in helped.generate(model, row, sampling):
        pass
    return row.ids, helped


def plainly(model, sampling, prompt=PROMPT) -> list[int]:
    row = Continuation(prompt, sampling.max_new_tokens)
    for _ in engine.generate(model, [row], sampling):
        pass
    return row.ids


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The probability of counts at least as far from these probabilities, if they are the true ones."""
    expected = wanted.double() / wanted.double().sum() * found.sum()
    return float(chisquare(found.double().numpy(), expected.numpy()).pvalue)


def test_greedy_texts_are_those_of_the_plain_loop_whoever_proposes(model):
    """Windows are shorter than the texts: what a ring took back must not be seen again."""
    greedy = Sampling(max_new_tokens=44)
    if not hasattr(model.init_state(1, 8).layers[0], "reserve"):
        with pytest.raises(UserError, match="cannot take tokens back"):
            written(model, NgramDraft(), greedy)
        return
    wanted = plainly(model, greedy)
    drafts = {
        "itself": ModelDraft(model, 61, cost=0.0),
        "its first layer": ModelDraft(shallow(model, 1), 61, cost=0.2),
        "another": ModelDraft(decoder(config("llama2"), seed=1), 61, cost=0.2),
        "one that reads little": ModelDraft(decoder(config("llama2"), seed=1), 61, context=20, cost=0.2),
        "its own words": NgramDraft(),
    }
    for name, draft in drafts.items():
        ids, helped = written(model, draft, greedy)
        assert ids == wanted, name
        if name == "itself":
            assert helped.kept == helped.proposed
            assert helped.rounds < 12
        else:
            assert helped.rounds <= len(wanted)


def test_a_draft_follows_from_text_to_text():
    model = decoder(config("llama2"))
    draft, greedy = ModelDraft(shallow(model, 1), 61, cost=0.2), Sampling(max_new_tokens=12)
    for prompt in (PROMPT, PROMPT[:4], [7, 7, 8], PROMPT):
        assert written(model, draft, greedy, prompt)[0] == plainly(model, greedy, prompt)


@pytest.mark.parametrize("sure", [False, True], ids=["drawn", "certain"])
def test_what_stays_and_what_follows_have_the_models_distribution(sure):
    """χ² over 100,000 draws: the first token is p₁'s; where the first proposal stayed, the second token is p₂'s."""
    torch.manual_seed(0)
    N, V, count = 100_000, 7, 3
    p, q = (2 * torch.randn(count + 1, V)).softmax(1), (2 * torch.randn(count, V)).softmax(1)
    if sure:
        proposed = p[:count].argmax(1).repeat(N, 1)
    else:
        proposed = torch.multinomial(q, N, replacement=True).T
    given = None if sure else q.expand(N, -1, -1)
    kept, last = verify(p.expand(N, -1, -1), given, proposed, torch.rand(N, count + 1))
    for place in range(count + 1):
        reached = kept >= place
        stayed = torch.nn.functional.pad(proposed, (0, 1))[:, place]
        found = torch.where(kept > place, stayed, last)[reached].bincount(minlength=V)
        assert apart(found, p[place]) > 1e-4, place


@pytest.mark.slow
def test_sampled_texts_have_the_models_distribution():
    """The first two tokens of 2,000 texts, all pairs, against the product of the model's own probabilities."""
    model = decoder(config("llama2", vocab=5, depth=1), scale=0.5)
    draft = ModelDraft(decoder(config("llama2", vocab=5, depth=1), seed=3, scale=0.5), 5, cost=0.0)
    sampling, prompt = Sampling(max_new_tokens=3, temperature=0.9, top_k=4), [1, 4, 2]
    found = torch.zeros(5, 5)
    for seed in range(2000):
        one, two, _ = written(model, draft, sampling, prompt, seed)[0]
        found[one, two] += 1
    with torch.no_grad():
        first = probabilities(model(torch.tensor([prompt]))[:, -1], sampling)[0]
        second = probabilities(model(torch.tensor([[*prompt, i] for i in range(5)]))[:, -1], sampling)
    wanted = (first[:, None] * second).flatten()
    possible = wanted > 0
    assert found.flatten()[~possible].sum() == 0
    assert apart(found.flatten()[possible], wanted[possible]) > 1e-4


def test_a_text_goes_on_as_it_did_before():
    random, draft = np.random.default_rng(0), NgramDraft(longest=3)
    ids = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    free = [1.0] * 9
    assert draft.propose(ids, free[:3], Sampling(), random) == ([4, 9], None)  # after 1 2 3, though 2 3 was newer
    assert draft.propose([*ids, 4], free, Sampling(), random)[0] == [9, 2, 3, 5, 1, 2, 3, 4]
    assert draft.propose([6, 7], free, Sampling(), random)[0] == []  # another text, which repeats nothing


def test_as_much_is_proposed_as_pays():
    """Against the formula for chances that are all alike, and by what became of guesses before."""
    prices = costs(torch.device("cpu"))
    for chance, each in ((0.95, 0.0), (0.8, 0.1), (0.5, 0.0), (0.3, 0.0)):
        gains = [
            (1 - chance ** (count + 1)) / (1 - chance) / (prices[count] + each * count) for count in range(len(prices))
        ]
        assert worth(lambda _, chance=chance: chance, prices, each) == int(np.argmax(gains))
    random, draft, sampling = np.random.default_rng(0), NgramDraft(), Sampling()
    copied = list(range(40)) * 2
    asked = [len(draft.propose(copied[:end], prices, sampling, random)[0]) for end in range(41, 80)]
    assert asked[0] < asked[8]
    draft.begin(nn.Identity())
    noise = np.random.default_rng(1).integers(0, 5, 400).tolist()
    asked = [len(draft.propose(noise[:end], prices, sampling, random)[0]) for end in range(1, 400)]
    assert np.mean(asked[200:]) < 0.5
    costly, model = ModelDraft(decoder(config("llama2")), 61), decoder(config("llama2"))
    costly.begin(model)  # as large as the model: however good, it would only cost
    assert costly.propose([1, 2, 3], prices, sampling, random) == ([], None)


def test_what_cannot_be_drafted_says_so():
    with pytest.raises(UserError, match="takes 1 to 1 of them, not 2"):
        shallow(decoder(config("llama2")), 2)
    with pytest.raises(UserError, match="cannot take tokens back"):
        takes_back(RecurrentConfig(vocab=9, width=8, depth=1, context=8).build())
    assert not Speculation(NgramDraft()).serves([], Sampling())
    one = [Continuation([1], 4)]
    assert Speculation(NgramDraft()).serves(one, Sampling())
    assert not Speculation(NgramDraft()).serves(one, Sampling(repetition_penalty=1.2))


def test_a_draft_that_was_broken_off_begins_anew():
    model, greedy = decoder(config("llama2")), Sampling(max_new_tokens=12)
    draft = ModelDraft(shallow(model, 1), 61, cost=0.2)
    written(model, draft, greedy, PROMPT[:4])
    features, draft.network.features = draft.network.features, None  # the next pass fails
    with pytest.raises(TypeError):
        written(model, draft, greedy)
    draft.network.features = features
    assert written(model, draft, greedy)[0] == plainly(model, greedy)


def test_distributions_that_differ_by_rounding_only_are_drawn_from():
    p = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]])
    q = torch.tensor([[[0.50001, 0.5, 0.0]]])
    kept, token = verify(p, q, torch.tensor([[0]]), torch.tensor([[0.9999999, 0.7]]))
    assert (kept.item(), token.item()) == (0, 1)
