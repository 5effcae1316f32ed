"""Contracts of every model of two texts: padding and a cache change nothing, the future is not seen, the source is."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import Seq2SeqBatch
from onefold.core.errors import UserError
from onefold.models import seq2seq_families as families
from onefold.models.seq2seq import Seq2SeqConfig
from onefold.models.transformer import count_parameters
from onefold.objectives.language import NextToken

SMALL = {"vocab": 61, "width": 24, "embed.dropout": 0.0} | {
    f"{side}.{path}": value
    for side in ("encoder", "decoder")
    for path, value in {
        "depth": 2,
        "block.mixer": {"heads": 4, "dropout": 0.0},
        "block.ffn.width": 40,
        "block.dropout": 0.0,
    }.items()
}
SMALL["decoder.block.cross"] = {"heads": 4, "dropout": 0.0}
NARROW = {"encoder.block.mixer.head_width": 5, "decoder.block.mixer.head_width": 5, "decoder.block.cross.head_width": 5}
MODELS = {
    "transformer": families.transformer().but(SMALL),
    "marian": families.marian().but(SMALL | {"start": 60}),
    "bart": families.bart().but(SMALL | {"embed.position.context": 40, "context": 38}),
    "t5": families.t5().but(SMALL | NARROW),
    "t5 1.1": families.t5_v11().but(SMALL | NARROW | {"encoder.depth": 3}),
}
MODELS |= {
    "one stack, sines": families.one_stack(MODELS["transformer"]),
    "one stack, learned": families.one_stack(MODELS["bart"].but({"context": 20})),
    "one stack, relative": families.one_stack(MODELS["t5"]),
    "one stack, window": families.one_stack(MODELS["transformer"]).but({"decoder.block.mixer.window": 13}),
}
COUNTS = [
    (families.t5(), 60_506_624),
    (families.t5("base"), 222_903_552),
    (families.t5("large"), 737_668_096),
    (families.t5("3b"), 2_851_598_336),
    (families.t5("11b"), 11_307_321_344),
    (families.t5_v11(), 76_961_152),
    (families.t5_v11("base"), 247_577_856),
    (families.t5_v11("large"), 783_150_080),
    (families.t5_v11("xl"), 2_849_757_184),
    (families.t5_v11("xxl"), 11_135_332_352),
    (families.switch(), 619_339_008),
    (families.bart(), 139_420_416),
    (families.bart("large"), 406_291_456),
    (families.marian(), 73_886_208 + 58_101),  # that of the files holds the logits' bias beside the parameters
]


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    return rough(MODELS[request.param])


def rough(config: Seq2SeqConfig, seed: int = 0):
    """A model with weights large enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = config.build().eval()
    for name, parameter in model.named_parameters():
        norm = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.2)
    return model


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("config", "count"), COUNTS)
def test_published_parameter_counts(config, count):
    assert count_parameters(config) == count
    assert Seq2SeqConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(("size", "millions"), [("base", 65), ("big", 213)])
def test_the_first_transformer_has_about_as_many_parameters_as_its_paper_says(size, millions):
    assert count_parameters(families.transformer(size)) / 1e6 == pytest.approx(millions, rel=0.035)


@torch.no_grad()
def test_padded_rows_equal_rows_alone(model):
    source, target = tokens(3, 12), tokens(3, 9, seed=2)
    lengths = [(12, 9), (7, 4), (1, 1)]
    segments = (torch.arange(12)[None] >= torch.tensor([n for n, _ in lengths])[:, None]).long()
    padded = model(source, target, segments)
    for row, (read, written) in enumerate(lengths):
        alone = model(source[row : row + 1, :read], target[row : row + 1, :written])
        torch.testing.assert_close(padded[row, :written], alone[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_cached_equals_whole_in_chunks_and_single_steps(model):
    source, target = tokens(2, 9), tokens(2, 12, seed=2)
    segments = (torch.arange(9)[None] >= torch.tensor([9, 5])[:, None]).long()
    whole = model(source, target, segments)
    state = model.init_state(source, segments, 12)
    parts = [(0, 4), (4, 5), (5, 6), (6, 10), (10, 11), (11, 12)]
    got = [model.head(model.decode(target[:, a:b], state=state)) for a, b in parts]
    torch.testing.assert_close(torch.cat(got, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_source_is_seen_whole_and_the_future_not(model):
    source, target = tokens(1, 8), tokens(1, 6, seed=2)
    before = model(source, target)
    for place in range(8):
        changed = source.clone()
        changed[0, place] = (changed[0, place] + 1) % 60
        assert ((model(changed, target) - before).abs().amax(-1) > 1e-5).all()
    later = target.clone()
    later[0, 4:] = (later[0, 4:] + 1) % 60
    torch.testing.assert_close(model(source, later)[:, :4], before[:, :4])


def test_a_gradient_reaches_every_parameter(model):
    model.train()
    model(tokens(2, 12), tokens(2, 11, seed=2)).logsumexp(-1).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused


def test_the_loss_is_that_of_the_logits(model):
    source, target = tokens(2, 7), tokens(2, 6, seed=2)
    inputs = torch.cat((torch.full((2, 1), 60), target[:, :-1]), 1)
    weights = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])
    batch = Seq2SeqBatch(tokens=inputs, targets=target, weights=weights, source=source)
    assert batch.size == 26
    assert batch.split(1)[1].source.shape == (1, 7)
    loss = NextToken().build()(model, batch, 0).terms["ce"]
    each = F.cross_entropy(model(source, inputs).flatten(0, 1), target.flatten(), reduction="none").view(2, 6)
    torch.testing.assert_close(loss.sum, (each * weights).sum())


def test_embeddings_and_head_are_one_matrix_where_they_are_tied():
    tied, untied = MODELS["t5"].build(), MODELS["t5 1.1"].build()
    names = dict(tied.named_parameters())
    assert "encoder.embed.token.weight" in names
    assert not {"decoder.embed.token.weight", "decoder.unembed.weight"} & names.keys()
    assert "decoder.unembed.weight" in dict(untied.named_parameters())
    assert tied.decoder.unembed.weight is tied.encoder.embed.token.weight is tied.decoder.embed.token.weight


def test_depths_grow_from_the_embedding_to_the_head():
    model = MODELS["t5 1.1"].build()
    said = {name: model.depth_of(name) for name, _ in model.named_parameters()}
    assert {said["encoder.embed.token.weight"], said["encoder.relative.weight"], said["decoder.relative.weight"]} == {0}
    assert [said[f"encoder.blocks.{i}.ffn.out.weight"] for i in range(3)] == [1, 2, 3]
    assert [said[f"decoder.blocks.{i}.cross.q.weight"] for i in range(2)] == [4, 5]
    assert said["encoder.norm.weight"] == 3
    assert said["decoder.unembed.weight"] == model.depths == 6


def test_new_tokens_begin_as_the_mean_of_the_others():
    model = rough(MODELS["marian"])
    larger = MODELS["marian"].but({"vocab": 64}).build()
    larger.load_state_dict(larger.adopt({name: p.detach() for name, p in model.named_parameters()}), strict=False)
    torch.testing.assert_close(larger.encoder.embed.token.weight[63], model.encoder.embed.token.weight.mean(0))
    torch.testing.assert_close(larger.decoder.unembed.bias[:61], model.decoder.unembed.bias)


def test_one_stack_has_the_depths_and_new_tokens_of_a_decoder():
    config = MODELS["one stack, relative"]
    model = rough(config)
    said = {name: model.depth_of(name) for name, _ in model.named_parameters()}
    assert {said["decoder.embed.token.weight"], said["decoder.relative.weight"]} == {0}
    assert [said[f"decoder.blocks.{i}.ffn.out.weight"] for i in range(2)] == [1, 2]
    assert said["decoder.norm.weight"] == model.depths == 3
    larger = config.but({"vocab": 64}).build()
    larger.load_state_dict(larger.adopt({name: p.detach() for name, p in model.named_parameters()}), strict=False)
    torch.testing.assert_close(larger.decoder.embed.token.weight[63], model.decoder.embed.token.weight.mean(0))


def test_impossible_shapes_are_refused():
    with pytest.raises(UserError, match=r"nothing to look at: decoder\.block\.cross must be null"):
        MODELS["t5"].but({"encoder": None})
    with pytest.raises(UserError, match=r"context \(1024\) exceeds the learned positions \(1000\)"):
        families.one_stack(families.bart().but({"context": 512, "embed.position.context": 1000}))
    with pytest.raises(UserError, match="cross is missing"):
        MODELS["t5"].but({"decoder.block.cross": None})
    with pytest.raises(UserError, match="sees what came before"):
        MODELS["t5"].but({"decoder.block.mixer.causal": False})
    with pytest.raises(UserError, match="looks both ways"):
        MODELS["t5"].but({"encoder.block.mixer.causal": True})
    with pytest.raises(UserError, match="cross-attention sees all"):
        MODELS["t5"].but({"decoder.block.cross.causal": True})
    with pytest.raises(UserError, match="relative biases and windows"):
        MODELS["t5"].but({"decoder.block.mixer.window": 4})
    with pytest.raises(UserError, match="must be a token"):
        MODELS["t5"].but({"start": 61})
    with pytest.raises(UserError, match="did you mean large"):
        families.bart("larg")


def test_t5_begins_as_its_authors_let_it():
    config = families.t5().but({"vocab": 500, "width": 64, "encoder.depth": 1, "decoder.depth": 1, "init": "fan_in"})
    heads = {"heads": 4, "head_width": 32}
    sides = {"encoder.block.mixer": heads, "decoder.block.mixer": heads, "decoder.block.cross": heads}
    torch.manual_seed(0)
    model = config.but(sides).build()
    encoder, decoder = model.encoder.blocks[0], model.decoder.blocks[0]
    assert model.encoder.embed.token.weight.std().item() == pytest.approx(1, rel=0.05)
    for queries in (encoder.mixer.qkv.weight[:128], decoder.mixer.qkv.weight[:128], decoder.cross.q.weight):
        assert queries.std().item() == pytest.approx((64 * 32) ** -0.5, rel=0.05)
    assert encoder.mixer.qkv.weight[128:].std().item() == pytest.approx(64**-0.5, rel=0.05)
