"""Contracts of every decoder: a cache changes nothing, packing changes nothing, a gradient reaches every parameter."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters

SMALL = {"vocab": 61, "width": 24, "depth": 3, "context": 64, "block.mixer.heads": 4}
MODELS = {
    "gpt2": families.gpt2().but({**SMALL, "block.ffn.width": 40}),
    "sinusoidal": families.gpt2().but({**SMALL, "block.ffn.width": 40, "embed.position": "sinusoidal"}),
    "post": families.gpt2().but({**SMALL, "block.ffn.width": 40, "block.residual": "post"}),
    "pythia": families.pythia().but({**SMALL, "block.ffn.width": 40}),
    "llama2": families.llama2().but({**SMALL, "block.mixer.kv_heads": 2, "block.ffn.width": 40}),
    "multi-query": families.llama2().but({**SMALL, "block.mixer.kv_heads": 1, "block.ffn.width": 40}),
    "llama3": families.llama3("3.1-8b").but({**SMALL, "block.mixer.kv_heads": 2, "block.ffn.width": 40}),
    "mistral": families.mistral().but(
        {**SMALL, "block.mixer.kv_heads": 2, "block.mixer.window": 5, "block.ffn.width": 40}
    ),
    "mixtral": families.mixtral().but({**SMALL, "block.mixer.kv_heads": 2, "block.ffn.expert.width": 20}),
    "residual experts": families.gpt2().but(
        {
            **SMALL,
            "block.ffn": {
                "kind": "experts",
                "experts": 3,
                "expert": {"kind": "mlp", "width": 20},
                "router": "switch",
                "capacity": 1.0,
                "shared": {"kind": "mlp", "width": 20},
                "mixed": True,
            },
        }
    ),
    "alternating": families.llama2().but(
        {**SMALL, "block.ffn.width": 40, "pattern": [{}, {"mixer.window": 4}], "tied": True}
    ),
    "alibi": families.llama2().but({**SMALL, "block.ffn.width": 40, "block.mixer.position": {"kind": "alibi"}}),
    "alibi window": families.llama2().but(
        {**SMALL, "block.ffn.width": 40, "block.mixer.position": {"kind": "alibi"}, "block.mixer.window": 4}
    ),
    "qwen2": families.qwen2().but({**SMALL, "block.mixer.kv_heads": 2, "block.ffn.width": 40}),
    "qwen3": families.qwen3().but(
        {**SMALL, "block.mixer.kv_heads": 2, "block.mixer.head_width": 10, "block.ffn.width": 40}
    ),
}
MODELS |= {
    "s4d": MODELS["llama2"].but({"block.mixer": {"kind": "s4d", "states": 8}}),
    "s4": MODELS["llama2"].but({"block.mixer": {"kind": "s4", "states": 8}, "block.ffn": None}),
    "hybrid": MODELS["llama2"].but({"pattern": [{}, {"mixer": {"kind": "s4d", "states": 8}}]}),
    "mixture of depths": MODELS["llama2"].but(
        {"depth": 4, "block.mixer.kv_heads": 2, "pattern": [{}, {"route": {"capacity": 0.3}}]}
    ),
    "universal": MODELS["post"].but({"depth": 1, "embed.position": None, "norm": None, "repeat": {"steps": 5}}),
    "repeated": MODELS["llama2"].but({"depth": 2, "repeat": {"steps": 3, "positions": False, "halting": None}}),
}


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param].build().eval()
    for name, parameter in model.named_parameters():  # weights large enough that a wrong mask or position shows
        decides = "route." in name or "repeat." in name  # for some tokens so, for others so
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 and not decides else 0.0, std=0.2)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_equals_uncached_in_chunks_and_single_steps(model):
    ids = tokens(2, 23)
    whole = model(ids)
    state = model.init_state(2, 32)
    parts = [
        model(ids[:, a:b], state=state) for a, b in [(0, 7), (7, 13), (13, 14), (14, 20), (20, 21), (21, 22), (22, 23)]
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(model):
    ids, lengths = tokens(3, 14), [14, 9, 3]
    state = model.init_state(3, 32)
    padded, positions = torch.zeros(3, 12, dtype=torch.long), torch.full((3, 12), -1)
    for row, length in enumerate(lengths):
        padded[row, 14 - length :] = ids[row, : length - 2]
        positions[row, 14 - length :] = torch.arange(length - 2)
    got = [model(padded, positions=positions, state=state)[:, -1:]]
    for step in (2, 1):
        following = torch.stack([ids[row, length - step] for row, length in enumerate(lengths)])[:, None]
        got.append(model(following, state=state))
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length])[0, length - 3 :]
        torch.testing.assert_close(torch.cat(got, 1)[row], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_documents_equal_documents_alone(model):
    a, b = tokens(1, 9), tokens(1, 6).flip(1)
    packed = torch.cat((a, b), 1)
    positions = torch.cat((torch.arange(9), torch.arange(6)))[None]
    segments = torch.tensor([[0] * 9 + [1] * 6])
    got = model(packed, positions, segments)
    torch.testing.assert_close(got, torch.cat((model(a), model(b)), 1), atol=2e-5, rtol=1e-4)


def test_a_gradient_reaches_every_parameter(model):
    model.train()
    model(tokens(2, 12)).logsumexp(-1).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused


@torch.no_grad()
def test_the_future_is_not_seen(model):
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 8:] = 60 - changed[0, 8:]
    torch.testing.assert_close(model(ids)[:, :8], model(changed)[:, :8])


def reach(model, length: int) -> int:
    """How many positions back, itself included, the last position's features depend on."""
    embedded = {}
    model.embed.register_forward_hook(
        lambda _, __, out: embedded.update(x=out.detach().requires_grad_()) or embedded["x"]
    )
    model.features(tokens(1, length))[0, -1].sum().backward()
    seen = embedded["x"].grad[0].abs().sum(-1) > 0
    return length - int(seen.int().argmax())


@pytest.mark.parametrize(("window", "depth"), [(4, 1), (4, 3), (7, 2)])
def test_receptive_field_of_stacked_windows(window, depth):
    """k layers of window W reach k·(W-1)+1 positions when W counts the token itself."""
    model = MODELS["mistral"].but({"depth": depth, "block.mixer.window": window}).build()
    assert reach(model, 40) == depth * (window - 1) + 1


def test_cache_bytes_stay_flat_past_the_window():
    model = MODELS["mistral"].build()
    sizes = [model.init_state(1, capacity).bytes() for capacity in (5, 6, 64, 4096)]
    assert len(set(sizes)) == 1
    assert model.init_state(1, 4).bytes() < sizes[0]
    recurrent = MODELS["s4d"].build()
    assert recurrent.init_state(1, 4).bytes() == recurrent.init_state(1, 4096).bytes()


@pytest.mark.parametrize("init", ["normal", "fan_in"])
def test_fresh_weights_predict_nearly_uniformly(init):
    torch.manual_seed(0)
    model = families.llama2().but({**SMALL, "width": 64, "block.ffn.width": 160, "init": init}).build()
    logits = model(tokens(4, 32))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(4, 32).flatten())
    assert abs(loss.item() - torch.log(torch.tensor(61.0)).item()) < 0.5


def test_counting_allocates_nothing_and_agrees():
    config = MODELS["gpt2"]
    assert count_parameters(config) == sum(p.numel() for p in config.build().parameters())


def test_impossible_shapes_are_refused():
    with pytest.raises(UserError, match="multiple of kv_heads"):
        MODELS["llama2"].but({"block.mixer.kv_heads": 3})
    with pytest.raises(UserError, match="context"):
        DecoderConfig.from_dict(MODELS["gpt2"].to_dict()).but({"context": 4096})


def test_a_full_cache_says_so():
    model = MODELS["llama2"].build()
    with pytest.raises(UserError, match="do not fit"):
        model(tokens(1, 9), state=model.init_state(1, 8))


@torch.no_grad()
def test_what_layers_remember_is_what_reading_leaves(model):
    """Of tokens that a block only remembers, those to come see what they would see if it had read them."""
    ids = tokens(2, 14)
    states, block = [model.init_state(2, 20) for _ in range(2)], model.blocks[0]
    whole, parted = (state.layers[0] for state in states)
    x = torch.randn(2, 14, 24, generator=torch.Generator().manual_seed(2))

    def layout(state, start, stop):
        state.length = start
        return state.layout(ids[:, start:stop], None)

    for start, stop in [(0, 3), (3, 9), (9, 10)]:
        block(x[:, start:stop], layout(states[0], start, stop), whole)
        block.remember(x[:, start:stop], layout(states[1], start, stop), parted)
    last = [block(x[:, 10:], layout(state, 10, 14), held) for state, held in zip(states, (whole, parted))]
    torch.testing.assert_close(*last)
