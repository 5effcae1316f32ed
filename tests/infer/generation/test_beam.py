"""Beam search against trying everything, and against transformers' own."""

import itertools

import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.generation.beam import beam_search, length_penalty
from onefold.infer.generation.sampling import Sampling
from tests.infer.small_models import config, decoder

TINY = {"vocab": 5, "width": 16, "block.mixer.heads": 2, "block.mixer.kv_heads": None, "context": 32}


def tiny(seed: int):
    return decoder(config("llama2", **TINY), seed, scale=0.5)


@torch.no_grad()
def everything(model, prompt, longest, sampling, end) -> list[tuple[float, list[int]]]:
    """Every text of up to `longest` tokens with its score, best first."""
    found = []
    for length in range(1, longest + 1):
        texts = [
            ids
            for ids in itertools.product(range(5), repeat=length)
            if end not in ids[:-1] and (ids[-1] == end or length == longest)
        ]
        logp = model(torch.tensor([[*prompt, *ids] for ids in texts])).log_softmax(-1)[:, len(prompt) - 1 : -1]
        totals = logp.gather(2, torch.tensor(texts)[..., None]).sum((1, 2)).tolist()
        penalty = length_penalty(length, sampling)
        found += [(total / penalty, [t for t in ids if t != end]) for total, ids in zip(totals, texts)]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("a", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("norm", ["power", "gnmt"])
def test_a_wide_enough_beam_finds_the_best_of_all_texts(a, norm):
    model, end = tiny(1), 0
    sampling = Sampling(beams=5**3, length_penalty=a, length_norm=norm)
    prompts = [[1, 2, 3], [4]]
    got = beam_search(model, prompts, [4, 4], sampling, [end])
    for prompt, hypotheses in zip(prompts, got):
        want = everything(model, prompt, 4, sampling, end)[:20]
        assert [h.ids for h in hypotheses[:20]] == [ids for _, ids in want]
        assert [h.score for h in hypotheses[:20]] == pytest.approx([score for score, _ in want], abs=1e-5)


def test_penalties_are_those_of_the_papers():
    assert length_penalty(10, Sampling(length_penalty=0.6)) == pytest.approx(10**0.6)
    assert length_penalty(10, Sampling(length_penalty=0.6, length_norm="gnmt")) == pytest.approx((15 / 6) ** 0.6)
    assert length_penalty(7, Sampling(length_penalty=0.0)) == 1.0


def test_one_prompt_in_a_batch_is_searched_as_if_alone():
    model, sampling = decoder(config("mistral")), Sampling(beams=4)
    prompts, budgets = [[5, 9, 2, 44, 17, 3, 8, 1], [1], [60, 2, 2]], [12, 5, 9]
    together = beam_search(model, prompts, budgets, sampling, [7, 8])
    for prompt, budget, found in zip(prompts, budgets, together):
        (alone,) = beam_search(model, [prompt], [budget], sampling, [7, 8])
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)
        assert all(len(h.ids) <= budget for h in found)


def test_one_beam_is_greedy():
    from onefold.infer.generation.continuation import Continuation
    from onefold.infer.generation.engine import generate

    model = decoder(config("gpt2"))
    row = Continuation([3, 4, 5], 15, [2])
    for _ in generate(model, [row], Sampling()):
        pass
    ((best,),) = beam_search(model, [[3, 4, 5]], [15], Sampling(), [2])
    assert (best.ids, best.finish) == (row.ids, row.finish)


def test_sampling_and_beams_do_not_mix():
    with pytest.raises(UserError, match="beam search takes no temperature"):
        beam_search(tiny(0), [[1]], [3], Sampling(beams=2, temperature=1.0))


@pytest.mark.parametrize("a", [0.0, 0.8])
def test_beams_are_those_of_transformers(a):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = dict(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=64)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=7)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)

    class Theirs:
        """Their model in our protocol, without a cache: independent of everything but the search."""

        config = config("gpt2")
        parameters = theirs.parameters

        def init_state(self, batch, capacity):
            return _Written()

        def features(self, tokens, positions=None, state=None):
            state.tokens = tokens if state.tokens is None else torch.cat((state.tokens, tokens), 1)
            return theirs.transformer(state.tokens).last_hidden_state

        def head(self, features):
            return theirs.lm_head(features)

    prompts = [[5, 9, 2], [1, 8, 60]]
    want = theirs.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(2, 3),
        num_beams=4,
        max_new_tokens=10,
        early_stopping="never",
        length_penalty=a,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=7,
    )
    got = beam_search(Theirs(), prompts, [10, 10], Sampling(beams=4, length_penalty=a), [7])
    for row, hypotheses in zip(want.tolist(), got):
        ids = row[3:]
        assert hypotheses[0].ids == (ids[: ids.index(7)] if 7 in ids else ids)


class _Written:
    tokens = None

    def reorder(self, rows):
        self.tokens = self.tokens[rows]
