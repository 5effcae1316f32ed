"""Maps against the definition: attention computed by hand, gradients by finite differences, and planted evidence."""

import pytest
import torch
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.models.transformer import BlockConfig
from onefold.models.vision.vit import ViT, ViTConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.study.pages.evidence import attention_maps, evidence, saliency


def small_vit(pool: str = "class", depth: int = 2) -> ViT:
    torch.manual_seed(0)
    block = BlockConfig(
        norm=LayerNormConfig(), mixer=AttentionConfig(heads=2, causal=False, bias=True), ffn=MLPConfig(width=16)
    )
    model = ViTConfig(image=12, patch=4, classes=3, width=8, depth=depth, block=block, pool=pool).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))  # fresh models attend to everything alike
    return model


def weights_by_hand(model: ViT, pixels: Tensor) -> list[Tensor]:
    """Softmax of queries and keys of each block, averaged over heads."""
    found, hooks = [], []
    for block in model.blocks:

        def note(module, args):
            x = args[0]
            q, k, _ = module.qkv(x).chunk(3, -1)
            heads = [(a.softmax(-1)) for a in (qh @ kh.mT / 2 for qh, kh in zip(q.split(4, -1), k.split(4, -1)))]
            found.append(sum(heads) / 2)

        hooks.append(block.mixer.register_forward_pre_hook(note))
    with torch.no_grad():
        model.eval().features(pixels)
    for hook in hooks:
        hook.remove()
    return found


def test_attention_is_that_of_the_layers():
    model, pixels = small_vit(), torch.randn(2, 3, 12, 12)
    first, last = weights_by_hand(model, pixels)
    torch.testing.assert_close(attention_maps(model, pixels, "last"), last[:, 0, 1:].unflatten(1, (3, 3)))
    one = torch.eye(10)
    rolled = (last + one) / 2 @ ((first + one) / 2)
    torch.testing.assert_close(attention_maps(model, pixels), rolled[:, 0, 1:].unflatten(1, (3, 3)))


def test_a_mean_of_squares_looks_with_all_of_them():
    model, pixels = small_vit("mean"), torch.randn(2, 3, 12, 12)
    _, last = weights_by_hand(model, pixels)
    expected = last[:, 1:, 1:].mean(1).unflatten(1, (3, 3))
    torch.testing.assert_close(attention_maps(model, pixels, "last"), expected)


def test_maps_add_up_and_follow_the_pictures_size():
    model, pixels = small_vit().train(), torch.randn(1, 3, 16, 8)
    found = attention_maps(model, pixels)
    assert found.shape == (1, 4, 2)
    assert 0 < float(found.sum()) <= 1
    assert model.training


def test_only_transformers_attend():
    with pytest.raises(UserError, match="use saliency"):
        attention_maps(nn.Flatten(), torch.zeros(1, 3, 4, 4))


class Corner(nn.Module):
    """Its second class hangs on the four pixels of one corner, the third of its channels most."""

    def forward(self, pixels: Tensor) -> Tensor:
        corner = pixels[:, :, :2, :2].square().sum((2, 3)) @ torch.tensor([1.0, 2.0, 3.0])
        return torch.stack((pixels.sum((1, 2, 3)), corner), 1)


def test_a_plain_gradient_is_the_finite_difference():
    pixels = torch.randn(1, 3, 4, 4, dtype=torch.double)
    model = Corner().double()
    model.forward = lambda x: torch.stack((x.sum((1, 2, 3)), x.square().flatten(1) @ torch.arange(48.0).double()), 1)
    found = saliency(model, pixels, torch.tensor([1]), samples=1)
    step, expected = 1e-6, torch.zeros(3, 4, 4)
    for place in range(48):
        moved = torch.zeros(48, dtype=torch.double)
        moved[place] = step
        difference = model(pixels + moved.view(1, 3, 4, 4)) - model(pixels - moved.view(1, 3, 4, 4))
        expected.view(-1)[place] = (difference[0, 1] / (2 * step)).abs()
    torch.testing.assert_close(found[0].float(), expected.amax(0), rtol=1e-4, atol=1e-4)


def test_saliency_lies_where_the_answer_hangs():
    pixels = torch.randn(3, 3, 6, 6)
    model = Corner()
    found = saliency(model, pixels, torch.tensor([1, 1, 0]))
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[:2, :2] = True
    assert (found[:2, inside] > 0).all()
    assert (found[:2, ~inside] == 0).all()
    assert torch.equal(found, saliency(model, pixels, torch.tensor([1, 1, 0])))  # the same noise again
    torch.testing.assert_close(found[2], torch.ones(6, 6))


def test_it_leaves_no_gradients_behind():
    model, pixels = small_vit().train(), torch.randn(2, 3, 12, 12)
    saliency(model, pixels, torch.tensor([0, 2]), samples=2)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert evidence(model, pixels, torch.tensor([0, 2])).shape == (2, 3, 3)
