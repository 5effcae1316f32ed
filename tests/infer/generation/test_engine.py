"""The generate loop against the plain way: run the whole text through the model again for every token."""

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.generation.beam import beam_search
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import budget, generate, left_pad, reach, read
from onefold.infer.generation.sampling import Sampler, Sampling, randomness
from tests.infer.small_models import config, decoder

PROMPTS = [[5, 9, 2, 44, 17, 3, 8, 1, 30, 12, 7], [1], [60, 2, 2, 41, 6], [9, 9, 9, 9, 9, 9, 9, 20], [33, 1], [8] * 13]


def continued(model, prompts, sampling, ends=(), budgets=None) -> list[list[int]]:
    rows = [
        Continuation(p, n, ends, random=randomness(sampling, p))
        for p, n in zip(prompts, budgets or [sampling.max_new_tokens] * len(prompts))
    ]
    for _ in generate(model, rows, sampling):
        pass
    assert all(row.finish for row in rows)
    return [row.ids for row in rows]


@torch.no_grad()
def recomputed(model, prompt, sampling, ends=()) -> list[int]:
    sampler = Sampler([prompt], [randomness(sampling, prompt)], sampling, sampling.max_new_tokens, model.config.vocab)
    ids = list(prompt)
    for _ in range(sampling.max_new_tokens):
        token = int(sampler(model(torch.tensor([ids]))[:, -1]))
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


SETTINGS = [{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "repetition_penalty": 1.3, "top_k": 20}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "top-p", "penalty"])
def test_a_batch_of_ragged_prompts_equals_each_alone_recomputed(model, settings):
    sampling = Sampling(max_new_tokens=20, seed=5, **settings)
    assert continued(model, PROMPTS, sampling) == [recomputed(model, p, sampling) for p in PROMPTS]


def test_a_prompt_of_several_rows_is_read_once(model, monkeypatch):
    """And each row goes on as if it had stood alone, wherever the others end."""
    sampling = Sampling(max_new_tokens=12, temperature=1.5)
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[0], PROMPTS[3], PROMPTS[0]]

    def written(places) -> list[list[int]]:
        rows = [Continuation(prompts[n], 12, {9, 20}, random=np.random.default_rng(n)) for n in places]
        for _ in generate(model, rows, sampling):
            pass
        return [row.ids for row in rows]

    alone = [written([n])[0] for n in range(5)]
    shapes, features = [], model.features

    def seen(tokens, *rest, **more):
        shapes.append(tokens.shape)
        return features(tokens, *rest, **more)

    monkeypatch.setattr(model, "features", seen)
    assert written(range(5)) == alone
    assert len({tuple(ids) for ids in alone}) == 5
    assert shapes[:2] == [(2, 11), (5, 1)]


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_trained_with_prefixes_reads_each_prompt_whole(family, beams):
    model = decoder(config(family, prefix=True))
    long = [*PROMPTS, [int(i) for i in torch.randint(0, 61, (40,))]]

    def says(tokens, size):
        return model(torch.tensor([tokens]), prefix=torch.arange(len(tokens))[None] < size)[0, -1].log_softmax(-1)

    sampling = Sampling(max_new_tokens=6, beams=beams)
    if beams == 1:
        for prompt, ids in zip(long, continued(model, long, sampling)):
            for i, token in enumerate(ids):
                assert int(says([*prompt, *ids[:i]], len(prompt)).argmax()) == token
        return
    for prompt, [best, *_] in zip(long, beam_search(model, long, [6] * len(long), sampling, set())):
        sum_of = sum(float(says([*prompt, *best.ids[:i]], len(prompt))[t]) for i, t in enumerate(best.ids))
        assert best.score * len(best.ids) == pytest.approx(sum_of, abs=1e-3)


def test_rows_end_early_without_disturbing_the_others(model):
    sampling = Sampling(max_new_tokens=20, temperature=1.5, seed=1)
    free = continued(model, PROMPTS, sampling)
    ends = {free[0][3], free[2][7]}
    cut = continued(model, PROMPTS, sampling, ends)
    assert cut == [ids[: next((i for i, t in enumerate(ids) if t in ends), 20)] for ids in free]
    assert len({len(ids) for ids in cut}) > 1
    budgets = [1, 20, 3, 8, 20, 2]
    assert continued(model, PROMPTS, sampling, (), budgets) == [ids[:n] for ids, n in zip(free, budgets)]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
def test_prompts_read_in_chunks_give_the_logits_of_prompts_read_whole(model, chunk):
    tokens, positions = left_pad(PROMPTS)
    state = model.init_state(len(PROMPTS), 32)
    got = model.head(read(model, tokens, positions, state, chunk))
    want = torch.stack([model(torch.tensor([p]))[0, -1] for p in PROMPTS])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_text_and_another_another(model):
    def texts(seed):
        return continued(model, PROMPTS, Sampling(max_new_tokens=16, temperature=1.0, seed=seed))

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_a_ring_stays_flat_however_long_the_text():
    model = decoder(config("mistral"))
    sizes = []
    states = []
    init = model.init_state
    model.init_state = lambda *args: states.append(init(*args)) or states[-1]
    for n in (8, 60, 400):
        (ids,) = continued(model, [PROMPTS[0] * 4], Sampling(max_new_tokens=n))
        assert len(ids) == n
        sizes.append(states[-1].bytes())
    assert len(set(sizes)) == 1


def test_a_long_prompt_through_a_ring_equals_no_cache():
    model = decoder(config("mistral"))
    prompt = [i * 7 % 61 for i in range(150)]
    sampling = Sampling(max_new_tokens=12)
    assert continued(model, [prompt, prompt[:33]], sampling) == [
        recomputed(model, prompt, sampling),
        recomputed(model, prompt[:33], sampling),
    ]


def test_where_texts_end():
    assert reach(config("gpt2")) == 64
    assert reach(config("llama2")) == 64
    assert reach(config("mistral")) is None
    assert reach(config("llama2", **{"block.mixer.position": {"kind": "alibi"}})) is None
    assert reach(config("llama2", **{"pattern": [{}, {"mixer.window": 4}]})) == 64
    assert reach(config("llama2").but({"block.mixer": {"kind": "s4d"}})) is None
    assert reach(config("llama2").but({"pattern": [{}, {"mixer": {"kind": "s4d"}}]})) == 64
    assert reach(config("mistral", **{"embed.position": {"kind": "sinusoidal"}, "block.mixer.position": None})) == 64


def test_a_text_may_fill_the_context_to_the_last_position():
    model = decoder(config("gpt2", **{"context": 16, "embed.position": {"context": 16}}))
    prompts = [[3] * 16, [3] * 10, [4]]
    budgets = [budget(p, 100, reach(model.config)) for p in prompts]
    assert budgets == [1, 7, 16]
    assert [len(ids) for ids in continued(model, prompts, Sampling(), budgets=budgets)] == budgets
    with pytest.raises(UserError, match="17 tokens, the model's context is 16"):
        budget([3] * 17, 1, 16)


def test_closing_the_iterator_stops_the_work():
    model = decoder(config("llama2"))
    row = Continuation([1, 2], 50)
    steps = generate(model, [row], Sampling())
    next(steps)
    next(steps)
    steps.close()
    assert len(row.ids) == 2
    assert row.finish is None
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="no tokens"):
        left_pad([[1], []])
