"""Repeated blocks and halting, against a loop over tokens and steps in plain numbers."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.models.encoder import EncoderConfig
from onefold.models.transformer import BlockConfig, Decoder, DecoderConfig
from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.own_losses import listening

D, T, STEPS = 16, 10, 6


def config(residual: str = "post", depth: int = 1, **repeat) -> DecoderConfig:
    return DecoderConfig(
        vocab=23,
        width=D,
        depth=depth,
        context=32,
        block=BlockConfig(
            norm=LayerNormConfig(), mixer=AttentionConfig(heads=2), ffn=MLPConfig(width=24), residual=residual
        ),
        norm=None,
        repeat={"steps": STEPS, **repeat},
    )


def decoder(residual: str = "post", depth: int = 1, **repeat) -> Decoder:
    """Whose tokens halt at different times."""
    torch.manual_seed(0)
    model = config(residual, depth, **repeat).build()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.4)
    if model.repeat.halt is not None:
        with torch.no_grad():
            model.repeat.halt.bias.fill_(-0.5)
    return model


def tokens(rows: int = 2, length: int = T) -> torch.Tensor:
    return torch.randint(0, 23, (rows, length), generator=torch.Generator().manual_seed(2))


def looped(model: Decoder, x: torch.Tensor) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """ACT as it is published, row by row and token by token: (features, steps, remainders)."""
    columns = torch.arange(x.shape[1])
    layout = Layout(columns[None])
    place = model.repeat.signal(columns[None])
    states, sums = list(x[0]), [torch.zeros(())] * x.shape[1]
    found, taken, rest = [torch.zeros(D)] * x.shape[1], [0] * x.shape[1], [None] * x.shape[1]
    for step in range(STEPS):
        seen = torch.stack(states)[None] + place + model.repeat.signal(torch.tensor([[step + 1]]))
        for block in model.blocks:
            made = block(seen, layout)
            seen = torch.stack([made[0, i] if rest[i] is None else seen[0, i] for i in columns])[None]
        for i in columns:
            if rest[i] is not None:
                continue
            states[i], taken[i] = seen[0, i], taken[i] + 1
            p = model.repeat.halt(states[i]).sigmoid()
            if sums[i] + p >= 1 - model.repeat.config.epsilon or step == STEPS - 1:
                rest[i] = p = 1 - sums[i]
            else:
                sums[i] = sums[i] + p
            found[i] = found[i] + p * states[i]
    return torch.stack(found)[None], taken, torch.stack(rest)


@pytest.mark.parametrize(("residual", "depth"), [("post", 1), ("pre", 2)])
def test_halting_is_that_of_the_paper_and_so_are_its_gradients(residual, depth):
    model = decoder(residual, depth, halting={"ponder": 0.1})
    ids = tokens(1)
    with listening(model) as told:
        got = model.features(ids)
    expected, taken, rest = looped(model, model.embed(ids, Layout(torch.arange(T)[None])))
    assert len(set(taken)) > 1
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    (call,) = told["repeat"]
    value, weight = call.losses["ponder"]
    torch.testing.assert_close(value, sum(taken) / T + rest.mean())
    torch.testing.assert_close(call.figures["steps_taken"], torch.tensor(sum(taken) / T))
    assert (weight, call.units) == (0.1, T)
    weigh, parameters = torch.randn(1, T, D), [p for n, p in model.named_parameters() if not n.startswith("unembed")]
    wanted = torch.autograd.grad((expected * weigh).sum() + rest.mean(), parameters)
    found = torch.autograd.grad((got * weigh).sum() + value, parameters)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_those_who_halted_early_are_seen_later():
    """The caches of steps that nobody took any more are filled all the same."""
    model = decoder("pre", 2, positions=False, halting={"epsilon": 0.2}).eval()
    model.repeat.halt.weight.mul_(0.1)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    ids = tokens(3, 16)
    whole = model(ids)
    calls.clear()
    state = model.init_state(3, 16)
    steps = [model(ids[:, t : t + 1], state=state) for t in range(16)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=2e-5, rtol=1e-4)
    assert 16 < len(calls) < 16 * STEPS  # some were left out
    state.forget(4)
    torch.testing.assert_close(model(ids[:, 12:], state=state), whole[:, 12:], atol=2e-5, rtol=1e-4)


def test_an_encoder_and_a_decoder_share_the_loop():
    settings = config("pre", 2, halting=None).to_dict()
    shared = {name: settings[name] for name in ("vocab", "width", "depth", "context", "repeat")}
    block = {**settings["block"], "mixer": {**settings["block"]["mixer"], "causal": False}}
    torch.manual_seed(0)
    model = EncoderConfig.from_dict({**shared, "block": block, "masked": None}).build()
    x = ids = tokens()
    layout = Layout(torch.arange(T)[None])
    x = model.embed(ids, layout)
    for step in range(STEPS):
        x = x + model.repeat.signal(layout.positions) + model.repeat.signal(torch.tensor([[step + 1]]))
        for block in model.blocks:
            x = block(x, layout)
    torch.testing.assert_close(model.features(ids), x)


def test_it_begins_with_a_chosen_number_of_steps():
    torch.manual_seed(0)
    model = config().build()
    with listening(model) as told:
        model(tokens())
    assert 1.5 < told["repeat"][0].figures["steps_taken"] < 2.5
    assert model.repeat.halt.bias.item() == 1.0


def test_what_cannot_halt_is_refused():
    with pytest.raises(UserError, match="halting"):
        config().but({"block.mixer": {"kind": "s4d"}})
    with pytest.raises(UserError, match="halting"):
        config().but({"block.route": {}})
    with pytest.raises(UserError, match="steps"):
        config().but({"repeat.steps": 0})
