"""LSTMs that read one text and write another: torch's own, padding and a state change nothing, the source is seen."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from onefold.core.errors import UserError
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.models.transformer import count_parameters

CONFIG = RecurrentSeq2SeqConfig(vocab=31, width=8, depth=2)
LENGTHS = torch.tensor([7, 2, 5])


@pytest.fixture(params=[True, False], ids=["attention", "none"])
def model(request):
    torch.manual_seed(0)
    model = CONFIG.but({"attention": request.param}).build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(0, 31, (3, n), generator=generator) for n in (7, 6))
    return source, target, (torch.arange(7)[None] >= LENGTHS[:, None]).long()


def copy_into(oracle: nn.LSTM, layers, suffix: str = "") -> None:
    for i, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            getattr(oracle, f"{name}_l{i}{suffix}").data.copy_(parameter)


@torch.no_grad()
def test_equals_torchs_lstm_with_luongs_attention_spelled_out(model, texts):
    source, target, segments = texts
    encoder = nn.LSTM(8, 4, num_layers=2, bidirectional=True, batch_first=True)
    decoder = nn.LSTM(8, 8, num_layers=2, batch_first=True)
    copy_into(encoder, model.forwards)
    copy_into(encoder, model.backwards, "_reverse")
    copy_into(decoder, model.blocks)
    packed = pack_padded_sequence(model.embed(source), LENGTHS, batch_first=True, enforce_sorted=False)
    read, (h, c) = encoder(packed)
    memory, _ = pad_packed_sequence(read, batch_first=True)
    h, c = (torch.stack([torch.cat((s[2 * i], s[2 * i + 1]), -1) for i in range(2)]) for s in (h, c))
    wanted, _ = decoder(model.embed(target), (h, c))
    if model.config.attention:
        scores = wanted @ model.score.weight.T @ memory.mT
        scores = scores.masked_fill(segments.bool()[:, None], -torch.inf)
        context = scores.softmax(-1) @ memory
        wanted = torch.tanh(torch.cat((context, wanted), -1) @ model.combine.weight.T)
    torch.testing.assert_close(model.features(source, target, segments), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padded_rows_equal_rows_alone(model, texts):
    source, target, segments = texts
    padded = model(source, target, segments)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(padded[row], alone[0], atol=1e-5, rtol=1e-4)
    assert model(source, target, torch.ones_like(segments)).isfinite().all()  # nothing but padding


@torch.no_grad()
def test_step_by_step_equals_whole_and_rows_can_change_places(model, texts):
    source, target, segments = texts
    whole = model(source, target, segments)
    state = model.init_state(source, segments)
    first = model.head(model.decode(target[:, :3], state=state))
    order = torch.tensor([2, 0, 1])
    state.reorder(order)
    rest = [model.head(model.decode(target[order, t : t + 1], state=state)) for t in range(3, 6)]
    torch.testing.assert_close(first, whole[:, :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(rest, 1), whole[order, 3:], atol=1e-5, rtol=1e-4)


def test_a_gradient_reaches_every_parameter_and_shapes_need_no_memory(model, texts):
    model.train()
    model(*texts).logsumexp(-1).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert count_parameters(model.config) == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        assert model.config.build()(*(t.to("meta") for t in texts)).shape == (3, 6, 31)


def test_an_odd_width_is_refused():
    with pytest.raises(UserError, match="must be even"):
        CONFIG.but({"width": 7})
