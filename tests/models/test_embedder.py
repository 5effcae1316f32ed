"""Vectors do not depend on padding, and a trunk begins with what it was as a model of its own."""

import pytest
import torch
from pydantic import ValidationError

from onefold.models import encoder_families
from onefold.models.embedder import EmbedderConfig, embedder_of
from onefold.models.families import gpt2, llama2

SMALL = {"vocab": 50, "width": 16, "depth": 2, "block.mixer.heads": 2, "block.ffn.width": 24}


def encoder(**changes):
    return encoder_families.bert().but({**SMALL, "context": 12, "embed.position.context": 12, **changes})


def decoder():
    return gpt2().but({**SMALL, "context": 12, "embed.position.context": 12})


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("trunk", [encoder, decoder])
@torch.no_grad()
def test_padding_changes_nothing(trunk, pooling):
    if (trunk, pooling) == (decoder, "first"):
        with pytest.raises(ValidationError, match="the first token of a decoder sees no other"):
            EmbedderConfig(trunk=decoder(), pooling="first")
        return
    projections = ({"width": 8, "activation": "tanh"}, {"width": 5, "bias": False})
    model = embedder_of(trunk()).but({"pooling": pooling, "projections": projections}).build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, lengths = torch.randint(0, 50, (4, 12)), torch.tensor([12, 3, 7, 1])
    together = model.encode(tokens, lengths)
    assert together.shape == (4, model.config.width) == (4, 5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for row, n, vector in zip(tokens, lengths.tolist(), together):
        torch.testing.assert_close(model.encode(row[None, :n])[0], vector, atol=1e-5, rtol=1e-4)


def test_it_begins_with_a_model_that_had_heads():
    for config in (encoder(), decoder(), llama2().but({**SMALL, "context": 12})):
        before, after = config.build(), embedder_of(config).build()
        adopted = after.adopt(dict(before.named_parameters()))
        assert set(adopted) == {name for name, _ in after.named_parameters()}
        after.load_state_dict(adopted, strict=False)
        tokens = torch.randint(0, 50, (2, 9))
        assert torch.equal(after.eval().features(tokens), before.eval().features(tokens))
        again = embedder_of(config).build()
        assert again.adopt(dict(after.named_parameters())).keys() == adopted.keys()


def test_a_gradient_reaches_every_parameter():
    model = embedder_of(encoder()).but({"projections": ({"width": 8},)}).build()
    vectors = model.encode(torch.randint(0, 50, (4, 9)), torch.tensor([9, 4, 5, 2]))
    (model.log_scale().exp() * vectors @ torch.randn(8)).sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert unused == set()


def test_a_trunk_has_no_heads():
    with pytest.raises(ValidationError, match=r"trunk\.masked must be None"):
        EmbedderConfig(trunk=encoder())
    with pytest.raises(ValidationError, match=r"trunk\.tied must be true"):
        EmbedderConfig(trunk=llama2(), pooling="last")
    with pytest.raises(ValidationError, match=r"context \(13\) must lie between 1 and that of the trunk"):
        embedder_of(encoder()).model_validate(embedder_of(encoder()).to_dict() | {"context": 13})
