"""GPT against transformers' OpenAI GPT with random weights."""

import pytest
import torch

from onefold.models import families

SAME = {"attn.c_attn": "mixer.qkv", "attn.c_proj": "mixer.out", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.out"}
SAME |= {"ln_1": "mixer_norm", "ln_2": "ffn_norm"}


def test_it_computes_what_the_released_model_computes():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 20, "n_embd": 24, "n_layer": 3, "n_head": 4}
    theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given = theirs.state_dict()
    weights = {
        "embed.token.weight": given["transformer.tokens_embed.weight"],
        "embed.position.weight": given["transformer.positions_embed.weight"],
    }
    for i in range(3):
        for name, own in SAME.items():
            for leaf in ("weight", "bias"):
                tensor = given[f"transformer.h.{i}.{name}.{leaf}"]
                weights[f"blocks.{i}.{own}.{leaf}"] = tensor.T if tensor.ndim == 2 else tensor
    small = {"vocab": 61, "context": 20, "width": 24, "depth": 3, "block.mixer.heads": 4, "block.ffn.width": 96}
    ours = families.gpt().but({**small, "embed.position.context": 20}).build().eval()
    ours.load_state_dict(weights | {"unembed.weight": weights["embed.token.weight"]})
    ids = torch.randint(0, 61, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)
