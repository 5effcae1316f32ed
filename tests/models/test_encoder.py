"""Contracts of every encoder: packing and padding change nothing, all see all, heads start afresh where they must."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import TokenBatch
from onefold.core.errors import UserError
from onefold.models import encoder_families as families
from onefold.models.encoder import EncoderConfig
from onefold.models.transformer import count_parameters
from onefold.nn.attention import Layout
from onefold.objectives.language import NextToken

MASK = 60
SMALL = {
    "vocab": 61,
    "width": 24,
    "depth": 3,
    "context": 32,
    "block.mixer.heads": 4,
    "block.ffn.width": 40,
    "block.mixer.dropout": 0.0,
    "block.dropout": 0.0,
    "embed.dropout": 0.0,
}
MODELS = {
    "bert": families.bert().but(SMALL),
    "roberta": families.roberta().but(SMALL | {"classes": 3, "pooler": True}),
    "albert": families.albert().but(SMALL | {"embed.width": 10, "groups": 2}),
    "minilm": families.minilm().but(SMALL | {"classes": 5, "task": "token", "pooler": False}),
    "esm1b": families.esm1b().but(SMALL | {"embed.token_dropout.mask": MASK}),
}
MODELS["s4d"] = MODELS["bert"].but({"block.mixer": {"kind": "s4d", "states": 8, "causal": False}, "block.ffn": None})
TRUNK, MASKED = {"masked": None, "classes": 0}, {"pooler": False, "classes": 0}
COUNTS = [
    (families.bert().but(TRUNK), 109_482_240),
    (families.bert().but(MASKED), 109_514_298),
    (families.bert(), 110_106_428),
    (families.bert("large").but(TRUNK), 335_141_888),
    (families.roberta(), 124_697_433),
    (families.roberta().but({"masked": None, "pooler": True}), 124_645_632),
    (families.roberta("large"), 355_412_057),
    (families.roberta("large").but({"masked": None, "pooler": True}), 355_359_744),
    (families.albert().but(TRUNK), 11_683_584),
    (families.albert("xxlarge").but(TRUNK), 222_595_584),
    (families.minilm(), 22_713_216),
    (families.minilm("l12"), 33_360_000),
    (families.esm1b(), 652_359_094),
]


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    return rough(MODELS[request.param])


def rough(config: EncoderConfig, seed: int = 0):
    """A model with weights large enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    found = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))
    found[:, 2] = found[:, -3] = MASK
    return found


@pytest.mark.parametrize(("config", "count"), COUNTS)
def test_published_parameter_counts(config, count):
    assert count_parameters(config) == count
    assert EncoderConfig.from_json(config.to_json()) == config


@torch.no_grad()
def test_packed_texts_equal_texts_alone(model):
    a, b = tokens(1, 11), tokens(1, 6, seed=2)
    types = torch.zeros(1, 17, dtype=torch.long)
    if model.config.embed.types > 1:
        types = (torch.arange(17)[None] % 3 == 0).long()
    positions = torch.cat((torch.arange(11), torch.arange(6)))[None]
    segments = torch.tensor([[0] * 11 + [1] * 6])
    got = model(torch.cat((a, b), 1), positions, segments, types)
    alone = model(a, None, None, types[:, :11]), model(b, None, None, types[:, 11:])
    torch.testing.assert_close(got, torch.cat(alone, 1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_padded_rows_equal_rows_alone(model):
    ids, lengths = tokens(3, 12), [12, 7, 1]
    segments = (torch.arange(12)[None] >= torch.tensor(lengths)[:, None]).long()
    padded = model.features(ids, None, segments)
    for row, length in enumerate(lengths):
        alone = model.features(ids[row : row + 1, :length])
        torch.testing.assert_close(padded[row, :length], alone[0], atol=2e-5, rtol=1e-4)
    if model.classifier is not None and model.config.task == "sequence":
        alone = model.classify(model.features(ids[1:2, :7]))
        torch.testing.assert_close(model.classify(padded)[1:2], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_every_token_sees_every_other(model):
    ids = tokens(1, 8)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % MASK
    assert ((model.features(ids) - model.features(changed)).abs().amax(-1) > 1e-4).all()


def test_a_gradient_reaches_every_parameter(model):
    model.train()
    ids = tokens(2, 12)
    features = model.features(ids)
    said = [head(features) for head in (model.head, model.classify) if _has(model, head)]
    if model.regression is not None:
        residues = torch.ones_like(ids, dtype=torch.bool)
        said.append(model.contacts(ids, residues))
    sum(logits.logsumexp(-1).sum() for logits in said).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The pooler of a model that classifies nothing, or single tokens, has nobody to listen to it.
    assert not [n for n in unused if not (n.startswith("pooler") and model.classifier is None)]


def _has(model, head):
    return (model.unembed if head == model.head else model.classifier) is not None


def test_shared_layers_are_applied_in_turn():
    model = MODELS["albert"].but({"depth": 5, "groups": 2}).build()
    assert [list(model.blocks).index(block) for block in model.layers()] == [0, 0, 0, 1, 1]
    assert count_parameters(model.config) == count_parameters(model.config.but({"depth": 2}))


@torch.no_grad()
def test_token_dropout_ignores_which_token_was_masked_and_keeps_the_scale():
    model = rough(MODELS["esm1b"].but({"embed.position": None, "embed.norm": None}))
    ids = tokens(1, 10)
    x = model.embed(ids, Layout(torch.arange(10)[None]))
    assert (x[0, [2, 7]] == 0).all()
    torch.testing.assert_close(x[0, 0], model.embed.token.weight[ids[0, 0]] * 0.88 / 0.8)


@torch.no_grad()
def test_attention_is_what_the_mixer_uses(model):
    if not hasattr(model.blocks[0].mixer, "qkv"):
        with pytest.raises(UserError, match="its mixer is s4d"):
            next(model.attention(tokens(2, 9)))
        return
    ids = tokens(2, 9)
    segments = torch.tensor([[0] * 9, [0] * 5 + [1] * 4])
    first = next(model.attention(ids, None, segments))
    torch.testing.assert_close(first.sum(-1), torch.ones(2, 4, 9))
    assert (first[1, :, :5, 5:] == 0).all()
    layout = Layout(torch.arange(9)[None], segments=segments)
    x = model.embed(ids, layout)
    block = model.blocks[0]
    x = x if block.residual == "post" else block.mixer_norm(x)
    values = block.mixer.qkv(x).view(2, 9, 3, 4, 6)[:, :, 2].transpose(1, 2)
    mixed = block.mixer.out((first @ values).transpose(1, 2).reshape(2, 9, 24))
    torch.testing.assert_close(mixed, block.mixer(x, layout), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_the_loss_of_masked_tokens_is_that_of_the_head(name):
    model = rough(MODELS[name])
    ids, targets = tokens(2, 8), tokens(2, 8, seed=3)
    weights = (torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    loss = NextToken().build()(model, TokenBatch(tokens=ids, targets=targets, weights=weights), 0)
    loss.terms["ce"].sum.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model.head(model.features(ids))
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 8)
    plain = (each * weights).sum()
    plain.backward()
    torch.testing.assert_close(loss.terms["ce"].sum, plain)
    assert {"unembed.bias", "transform.norm.weight"} <= set(got)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-4, rtol=1e-4)


def test_a_fine_tune_begins_with_the_trunk_and_fresh_heads():
    trained = rough(MODELS["bert"])
    weights = {name: p.detach() for name, p in trained.named_parameters()}
    tuned = MODELS["bert"].but({"masked": None, "classes": 2, "vocab": 64}).build()
    fresh = tuned.classifier.weight.detach().clone()
    adopted = tuned.adopt(weights)
    assert adopted.keys() == dict(tuned.named_parameters()).keys()
    tuned.load_state_dict(adopted)
    assert torch.equal(tuned.blocks[1].ffn.up.weight, trained.blocks[1].ffn.up.weight)
    assert torch.equal(tuned.pooler.weight, trained.pooler.weight)  # as published fine-tunes begin
    assert torch.equal(tuned.classifier.weight, fresh)  # of as many classes, but they meant something else
    torch.testing.assert_close(tuned.embed.token.weight[63], trained.embed.token.weight.mean(0))

    again = MODELS["bert"].but({"masked": None, "classes": 2, "vocab": 64}).build()
    again.load_state_dict(again.adopt({name: p.detach() for name, p in tuned.named_parameters()}))
    assert torch.equal(again.classifier.weight, fresh)  # a fine-tune that goes on keeps its classes


def test_impossible_shapes_are_refused():
    with pytest.raises(UserError, match="causal must be false"):
        MODELS["bert"].but({"block.mixer.causal": True})
    with pytest.raises(UserError, match="classes must be 2"):
        MODELS["bert"].but({"task": "span", "classes": 3})
    with pytest.raises(UserError, match="exceeds the learned positions"):
        MODELS["bert"].but({"context": 513})
    with pytest.raises(UserError, match="did you mean base"):
        families.bert("bas")


def test_layers_may_differ_by_a_pattern():
    """Experts in every other layer; what a file says in a pattern is checked as all else in it."""
    experts = {"kind": "experts", "experts": 3, "expert": {"kind": "mlp", "width": 12}, "router": "switch"}
    config = MODELS["bert"].but({"pattern": [{}, {"ffn": experts}]})
    model = config.build()
    assert [type(block.ffn).__name__ for block in model.blocks] == ["MLP", "Experts", "MLP"]
    assert EncoderConfig.from_json(config.to_json()) == config
    model(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
    assert model.blocks[1].ffn.router.weight.grad.abs().sum() > 0
    for pattern, words in (
        ([{"mixer.causal": True}], "looks both ways"),
        ([{"ffn": {"kind": "os:system"}}], "is code"),
        ([{}, {"mixer.position": {"kind": "relative"}}], "relative biases are shared"),
    ):
        with pytest.raises(UserError, match=words):
            EncoderConfig.from_dict({**config.to_dict(), "pattern": pattern})
    mixed = MODELS["bert"].but({"pattern": [{}, {"mixer": {"kind": "s4d", "states": 8, "causal": False}}]})
    with pytest.raises(UserError, match="its mixer is s4d"):
        next(mixed.build().attention(torch.zeros(2, 5, dtype=torch.long)))
    with pytest.raises(UserError, match="groups and pattern"):
        config.but({"groups": 1})
