"""Vectors before the text: seen by every token, whatever lies beside it, and however it is read."""

import pytest
import torch

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.prompts import PrefixTuningConfig, PromptTuningConfig
from onefold.core.errors import UserError
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import generate
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling
from onefold.models.embed import EmbedConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.position import AlibiConfig, LearnedPositionConfig, RotaryConfig

IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def decoder(position=None, **mixer):
    torch.manual_seed(0)
    block = BlockConfig(
        mixer=AttentionConfig(heads=4, kv_heads=2, position=RotaryConfig(), **mixer), ffn=GatedMLPConfig(width=24)
    )
    embed = EmbedConfig(position=position)
    return DecoderConfig(vocab=40, width=16, depth=2, context=32, block=block, embed=embed, init="fan_in").build()


@pytest.fixture(params=["prompt", "prefix"])
def opened(request):
    model = decoder()
    kind = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[request.param]
    kind(length=3).apply(model)
    for block in model.blocks:
        torch.nn.init.normal_(block.mixer.base.out.weight, std=0.3)
    return model.eval()


def test_a_prompt_is_what_its_tokens_would_be():
    model = decoder()
    tokens = torch.tensor([[5, 6, 7]])
    longer = torch.cat((tokens.expand(2, -1), IDS), 1)
    wanted = model(longer)[:, 3:]
    PromptTuningConfig(length=3).apply(model)
    model.openings.adapters["adapter"].vectors.data = model.embed.token.weight[tokens[0]].detach().clone()
    torch.testing.assert_close(model(IDS), wanted, atol=1e-5, rtol=1e-5)


def test_packed_texts_each_see_it(opened):
    alone = torch.cat((opened(IDS[:1, :4]), opened(IDS[:1, 4:])), 1)
    segments = torch.tensor([[0] * 4 + [1] * 5])
    positions = torch.tensor([[*range(4), *range(5)]])
    torch.testing.assert_close(opened(IDS[:1], positions, segments), alone, atol=1e-5, rtol=1e-5)


def test_reading_from_a_cache_with_padding_is_the_same(opened):
    whole, short = opened(IDS[:1]), opened(IDS[1:, 2:])
    tokens = torch.stack((IDS[0], torch.cat((torch.zeros(2, dtype=torch.long), IDS[1, 2:]))))
    positions = torch.stack((torch.arange(9), torch.tensor([-1, -1, *range(7)])))
    for model in (opened, for_decoding(opened)):
        with torch.inference_mode():
            state = model.init_state(2, 9)
            first = model.features(tokens[:, :5], positions[:, :5], state=state)
            rest = [model.features(tokens[:, t : t + 1], state=state) for t in range(5, 9)]
            logits = model.head(torch.cat((first, *rest), 1))
        torch.testing.assert_close(logits[:1], whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[1:, 2:], short, atol=1e-5, rtol=1e-5)


def test_only_it_is_trained(opened):
    trained = {name for name, parameter in opened.named_parameters() if parameter.requires_grad}
    assert len(trained) == 1
    opened(IDS).logsumexp(-1).sum().backward()
    (name,) = trained
    assert opened.get_parameter(name).grad.abs().amax() > 0


def test_it_is_switched_and_goes_with_other_adapters(opened):
    bare = decoder().eval()
    for ours, theirs in zip(opened.blocks, bare.blocks):
        theirs.mixer.out.weight.data.copy_(ours.mixer.base.out.weight)
    opened.switch.use(None)
    assert torch.equal(opened(IDS), bare(IDS))
    LoRAConfig(rank=2, targets=("mixer.q",)).apply(opened, "second")
    opened.switch.use("adapter")
    row = Continuation(IDS[0].tolist(), 5)
    for _ in generate(opened, [row], Sampling(temperature=0)):
        pass
    assert len(row.ids) == 5


@pytest.mark.parametrize("mixer", [{"window": 4}, {"position": AlibiConfig()}, {"causal": False}])
def test_models_that_cannot_have_one_say_so(mixer):
    config = decoder().config.but({f"block.mixer.{name}": value for name, value in mixer.items()})
    with pytest.raises(UserError, match="for decoders whose tokens see all before them"):
        PromptTuningConfig().apply(config.build())


def test_learned_positions_end():
    model = decoder(LearnedPositionConfig(context=32))
    PromptTuningConfig(length=30).apply(model)
    with pytest.raises(UserError, match="more than the 32 learned positions"):
        model(IDS)
