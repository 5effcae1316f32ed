"""AWD-LSTM: the contracts of a causal language model, and torch's LSTM as an oracle."""

import pytest
import torch
from torch import nn

from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import generate
from onefold.infer.generation.sampling import Sampling
from onefold.models.recurrent.language_model import Recurrent, RecurrentConfig, RecurrentDropoutConfig
from onefold.models.transformer import count_parameters

CONFIG = RecurrentConfig(vocab=37, width=12, hidden=20, depth=3, context=32)


def rough(config: RecurrentConfig = CONFIG) -> Recurrent:
    torch.manual_seed(0)
    model = config.build().eval()
    for parameter in model.parameters():  # weights so large that a leaking state shows
        nn.init.normal_(parameter, std=0.4)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 37, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_it_is_a_stack_of_torchs_lstms():
    model, ids = rough(), tokens(2, 9)
    x = model.embed(ids)
    for layer in model.blocks:
        reference = nn.LSTM(layer.weight_ih.shape[1], layer.hidden, batch_first=True)
        reference.load_state_dict({f"{name}_l0": tensor for name, tensor in layer.named_parameters()})
        x, _ = reference(x)
    torch.testing.assert_close(model(ids), x @ model.embed.weight.T + model.unembed.bias)


def test_the_papers_size_on_wikitext_103():
    """Merity et al. print 24M on Penn Treebank (10,000 words)."""
    config = RecurrentConfig(vocab=10_000)
    gates = 4 * (1150 * (400 + 1150 + 2) + 1150 * (1150 + 1150 + 2) + 400 * (1150 + 400 + 2))
    assert count_parameters(config) == gates + 10_000 * 401 == 24_221_600


@torch.no_grad()
def test_texts_in_a_row_know_nothing_of_each_other():
    model, a, b = rough(), tokens(1, 9), tokens(1, 6).flip(1)
    segments = torch.tensor([[0] * 9 + [1] * 6])
    torch.testing.assert_close(model(torch.cat((a, b), 1), None, segments), torch.cat((model(a), model(b)), 1))


@torch.no_grad()
def test_a_state_in_chunks_and_behind_padding_is_the_whole_pass():
    model, ids, lengths = rough(), tokens(3, 14), [14, 9, 3]
    padded, positions = torch.zeros(3, 14, dtype=torch.long), torch.full((3, 14), -1)
    for row, length in enumerate(lengths):
        padded[row, 14 - length :], positions[row, 14 - length :] = ids[row, :length], torch.arange(length)
    state = model.init_state(3)
    parts = [model(padded[:, a:b], positions[:, a:b], state=state) for a, b in ((0, 4), (4, 12), (12, 13), (13, 14))]
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length])[0]
        torch.testing.assert_close(torch.cat(parts, 1)[row, 14 - length :], alone)


@torch.no_grad()
def test_the_engine_writes_what_the_whole_pass_likes_best():
    model, prompts = rough(), [[3, 1, 4, 1, 5], [9, 2]]
    rows = [Continuation(prompt, budget=6 + i) for i, prompt in enumerate(prompts)]  # one leaves the batch first
    for _ in generate(model, rows, Sampling(max_new_tokens=7)):
        pass
    for row, prompt in zip(rows, prompts):
        ids = list(prompt)
        for _ in row.ids:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert row.ids == ids[len(prompt) :]


def test_a_gradient_reaches_every_parameter_through_every_dropout():
    rates = RecurrentDropoutConfig(tokens=0.1, inputs=0.4, hidden=0.3, outputs=0.4, weights=0.5)
    torch.manual_seed(0)
    model = CONFIG.but({"classes": 3, "dropout": rates.to_dict()}).build().train()
    features = model.features(tokens(4, 12))
    (model.head(features).logsumexp(-1).sum() + model.classify(features).logsumexp(-1).square().sum()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not torch.equal(*(model.features(tokens(4, 12)) for _ in range(2)))
    assert model.config.dropout.times(0.5).weights == 0.25


def test_padding_does_not_change_a_class():
    model = rough(CONFIG.but({"classes": 3}))
    ids, padded = tokens(1, 5), torch.cat((tokens(1, 5), torch.full((1, 3), 7)), 1)
    segments = torch.tensor([[0] * 5 + [1] * 3])
    alone = model.classify(model.features(ids))
    torch.testing.assert_close(model.classify(model.features(padded, None, segments), segments), alone)


def test_it_takes_over_a_language_model_and_more_words():
    old, new = rough(), CONFIG.but({"vocab": 40, "classes": 3}).build()
    adopted = new.adopt(old.state_dict())
    new.load_state_dict(adopted)
    assert torch.equal(new.embed.weight[:37], old.embed.weight)
    torch.testing.assert_close(new.embed.weight[39], old.embed.weight.mean(0))
    back = old.adopt(new.state_dict())
    assert not [name for name in back if name.startswith("classifier.")]


@pytest.mark.parametrize(
    ("name", "depth"), [("embed.weight", 0), ("blocks.1.weight_hh", 2), ("classifier.out.bias", 4)]
)
def test_how_deep_its_parameters_lie(name, depth):
    model = CONFIG.but({"classes": 2}).build()
    assert name in dict(model.named_parameters())
    assert model.depth_of(name) == depth
