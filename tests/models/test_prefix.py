"""A decoder that reads what it goes on from in both directions: against a published model under the same mask, and
against an encoder where everything is prefix."""

import pytest
import torch

from onefold.models import families
from onefold.models.encoder import EncoderConfig

SMALL = {"vocab": 61, "width": 24, "depth": 3, "context": 64, "block.mixer.heads": 4, "block.ffn.width": 40}
MODELS = {
    "gpt2": families.gpt2().but(SMALL),
    "llama2": families.llama2().but({**SMALL, "block.mixer.kv_heads": 2}),
    "mistral": families.mistral().but({**SMALL, "block.mixer.kv_heads": 2, "block.mixer.window": 6}),
    "alibi": families.llama2().but({**SMALL, "block.mixer.position": {"kind": "alibi"}}),
    "relative": families.llama2().but({**SMALL, "block.mixer.position": {"kind": "relative", "buckets": 8}}),
}


def rough(config, seed=0):
    torch.manual_seed(seed)
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    return rough(MODELS[request.param].but({"prefix": True}))


def tokens(rows, length):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


def ahead(lengths, columns):
    """Bool[B, T]: the first so many of each row."""
    return torch.arange(columns) < torch.tensor(lengths)[:, None]


@torch.no_grad()
def test_everything_before_the_end_of_a_prefix_is_seen_and_nothing_later(model):
    ids, prefix = tokens(1, 12), ahead([5], 12)
    before = model(ids, prefix=prefix)
    for place in range(12):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % 61
        differs = (model(changed, prefix=prefix) - before)[0].abs().amax(-1) > 1e-6
        assert not differs[:place].any() if place >= 5 else differs[:5].all()
        assert differs[place]


@torch.no_grad()
def test_a_text_that_is_all_prefix_is_read_as_an_encoder_reads_it(model):
    config = model.config
    shared = {"vocab": 61, "width": 24, "depth": 3, "context": 64, "embed": config.embed, "norm": config.norm}
    encoder = EncoderConfig(**shared, block=config.block.but({"mixer.causal": False}), masked=None).build().eval()
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("unembed")}
    encoder.load_state_dict(own)
    ids = tokens(2, 11)
    whole = model.features(ids, prefix=torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(whole, encoder.features(ids), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_and_left_padded_texts_equal_texts_alone(model):
    ids, long, short = tokens(2, 9), 9, 5
    alone = [model(ids[:1], prefix=ahead([4], 9)), model(ids[1:, :short], prefix=ahead([2], short))]
    packed = torch.cat((ids[:1], ids[1:, :short]), 1)
    positions = torch.cat((torch.arange(long), torch.arange(short)))[None]
    segments = torch.cat((torch.zeros(long), torch.ones(short)))[None].long()
    got = model(packed, positions, segments, torch.cat((ahead([4], 9), ahead([2], short)), 1))
    torch.testing.assert_close(got, torch.cat(alone, 1), atol=1e-5, rtol=1e-4)

    state = model.init_state(2, 16)
    prompts, padding = (
        torch.stack((ids[0, :4], torch.tensor([0, 0, *ids[1, :2]]))),
        torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]]),
    )
    steps = [model(prompts, padding, state=state)[:, -1:]]
    steps += [model(torch.stack((ids[0, 4 + i], ids[1, 2 + i]))[:, None], state=state) for i in range(3)]
    wanted = torch.stack((alone[0][0, 3:7], alone[1][0, 1:5]))
    torch.testing.assert_close(torch.cat(steps, 1), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_logits_are_those_of_transformers_under_the_same_mask(tmp_path):
    transformers = pytest.importorskip("transformers")
    from onefold.interop.loaded import Loaded
    from onefold.interop.save import save

    config = MODELS["llama2"].but({"tied": False})
    plain = rough(config)
    save(Loaded(config, plain, None), tmp_path / "llama", "hf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama", attn_implementation="eager")
    ours = config.but({"prefix": True}).build().eval()
    ours.load_state_dict(plain.state_dict())
    ids, prefix = tokens(2, 10), ahead([4, 7], 10)
    seen = torch.ones(10, 10).tril().bool() | prefix[:, None]
    mask = torch.zeros(2, 1, 10, 10).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
    torch.testing.assert_close(ours(ids, prefix=prefix), theirs(ids, attention_mask=mask).logits, atol=1e-4, rtol=1e-4)


def test_a_gradient_reaches_every_parameter(model):
    model.train()
    model(tokens(2, 12), prefix=ahead([3, 8], 12)).logsumexp(-1).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
