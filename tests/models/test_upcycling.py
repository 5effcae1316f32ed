"""Dense models as the beginning of mixtures of experts."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.models.seq2seq_families import t5
from tests.models.test_encoder import MODELS as ENCODERS
from tests.models.test_transformer import MODELS, tokens

EXPERTS = {"kind": "experts", "experts": 3, "expert": {"kind": "gated", "width": 40}}


@torch.no_grad()
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shared": {"kind": "gated", "width": 40}, "mixed": True},
        {"shared": {"kind": "gated", "width": 40}},
        {"shared": {"kind": "gated", "width": 24}},
    ],
    ids=["plain", "mixed", "shared", "narrow"],
)
def test_experts_begin_as_the_dense_layer(more):
    dense = MODELS["mistral"].build()
    made = dense.config.but({"pattern": [{}, {"ffn": {**EXPERTS, **more}}]}).build()
    made.load_state_dict(made.adopt(dict(dense.named_parameters())), strict=False)
    assert [type(block.ffn).__name__ for block in made.blocks] == ["GatedMLP", "Experts", "GatedMLP"]
    torch.testing.assert_close(made(tokens(2, 12)), dense(tokens(2, 12)), atol=1e-5, rtol=1e-5)
    # what is one already is taken as it is
    again = made.config.build()
    again.load_state_dict(again.adopt(dict(made.named_parameters())), strict=False)
    torch.testing.assert_close(again(tokens(2, 12)), made(tokens(2, 12)))


@torch.no_grad()
def test_an_encoders_layer():
    dense = ENCODERS["bert"].build().eval()
    ffn = {**EXPERTS, "expert": dense.config.block.ffn.to_dict()}
    made = dense.config.but({"pattern": [{}, {"ffn": ffn}]}).build().eval()
    made.load_state_dict(made.adopt(dict(dense.named_parameters())), strict=False)
    torch.testing.assert_close(made(tokens(2, 12)), dense(tokens(2, 12)), atol=1e-5, rtol=1e-5)
    ffn = {**ffn, "expert": {**ffn["expert"], "width": 12}}
    with pytest.raises(UserError, match="of the dense layer is"):
        dense.config.but({"pattern": [{}, {"ffn": ffn}]}).build().adopt(dict(dense.named_parameters()))


@torch.no_grad()
def test_both_halves_of_an_encoder_decoder():
    block = {"block.mixer.heads": 4, "block.mixer.head_width": 5, "block.ffn.width": 20, "depth": 2}
    sides = {f"{side}.{path}": value for side in ("encoder", "decoder") for path, value in block.items()}
    cross = {"decoder.block.cross": {"heads": 4, "head_width": 5}}
    small = {"vocab": 61, "width": 24, **sides, **cross}
    dense = t5().but(small).build().eval()
    experts = {**EXPERTS, "expert": {"kind": "mlp", "width": 20, "activation": "relu", "bias": False}}
    pattern = {f"{side}.pattern": [{}, {"ffn": experts}] for side in ("encoder", "decoder")}
    made = dense.config.but(pattern).build().eval()
    made.load_state_dict(made.adopt(dict(dense.named_parameters())), strict=False)
    source, target = tokens(2, 9), tokens(2, 7)
    torch.testing.assert_close(made(source, target), dense(source, target), atol=1e-5, rtol=1e-5)
