"""What is each convolutional network's own, and its published sizes."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from onefold.core.errors import UserError
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.residual import ResidualConfig
from onefold.nn.vision.batch_norm import BatchNorm
from onefold.nn.vision.standardised import StandardisedConv
from tests.models.test_vision import CONVNEXT_WORDS, SMALL, fresh, pictures

COUNTS = {
    vision_sizes.convnext: {
        "t": 28_589_128, "s": 50_223_688, "b": 88_591_464, "l": 197_767_336, "xl": 350_196_968
    },
    vision_sizes.resnet: {"50": 25_557_032, "101": 44_549_160, "152": 60_192_808},
    vision_sizes.nfnet: {
        "f0": 71_489_284, "f1": 132_634_256, "f2": 193_779_228, "f3": 254_924_200,
        "f4": 316_069_172, "f5": 377_214_144, "f6": 438_359_116,
    },
}  # fmt: skip


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, sizes in COUNTS.items() for s in sizes])
def test_published_parameter_counts(family, size):
    config = family(size)
    assert count_parameters(config) == COUNTS[family][size]
    assert type(config).from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["convnext", "resnet", "residual", "nfnet"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(UserError, match="must be as many"):
        SMALL[name].but({"blocks": [1, 2, 3]})


def test_pictures_too_small_for_the_stages_of_a_convnext_are_refused():
    config = vision_sizes.convnext(image=28, classes=5).but({"blocks": [1, 1, 1, 1], "widths": [8, 8, 8, 8]})
    with pytest.raises(UserError, match=r"28 pixels .* 4 stages and patches of 4: use at least 32"):
        config.build()
    for changes in ({"image": 32}, {"patch": 2}, {"blocks": [1, 1, 1], "widths": [8, 8, 8]}):
        fits = config.but(changes)
        assert fits.build()(pictures(fits)).shape == (2, 5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext", "resnet", "nfnet"])
def test_features_are_a_small_picture_of_the_same_orientation(name):
    """Sides divided by 4 in the stem and 2 in the second stage; the left half of the picture decides the left."""
    model, x = fresh(SMALL[name]).eval(), pictures(SMALL[name], side=128)
    changed = x.clone()
    changed[..., :16] += 1
    before, after = model.features(x), model.features(changed)
    assert before.shape[2:] == (16, 16)
    moved = (before - after).abs().amax((0, 1))
    if name != "nfnet":  # its channels' means see everything
        assert moved[:, -4:].max() == 0
    assert moved[:, :2].min() > 0


def test_batch_norm_is_torchs_in_training_and_after():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(8, 4, 5, 5) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert list(ours.state_dict()) == ["weight", "bias", "mean", "variance"]


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 2), (3, 2, 1), (3, 2, 3)])
def test_standardised_convolutions_equal_the_formula(kernel, stride, groups, side):
    torch.manual_seed(0)
    conv, x = StandardisedConv(6, 12, kernel, stride, groups), torch.randn(2, 6, side, side)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
    flat = conv.weight.detach().double().flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + conv.eps).sqrt()
    flat = flat / math.sqrt(flat.shape[1]) * conv.gain.detach()[:, None]
    torch.testing.assert_close(conv.standardised().detach().double().flatten(1), flat)
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)  # "same"
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    weight = flat.float().view_as(conv.weight)
    torch.testing.assert_close(conv(x), F.conv2d(padded, weight, conv.bias, stride, groups=groups))


def test_blocks_of_a_fresh_nfnet_are_their_shortcuts_and_its_filters_are_not_scaled():
    model = SMALL["nfnet"].build()  # whose first convolution has one filter, and so a gain of one element too
    gains = {name: parameter for name, parameter in model.named_parameters() if name.endswith("gain")}
    blocks = {f"stages.{i}.blocks.{j}.gain" for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))}
    assert blocks < set(gains)
    for name, gain in gains.items():
        assert (gain == (0 if name in blocks else 1)).all(), name


@torch.no_grad()
def test_a_fresh_nfnet_keeps_the_variance_it_predicts():
    torch.manual_seed(0)
    shape = {"blocks": [4, 4], "widths": [64, 128], "stem": 64, "group": 32}
    model = vision_sizes.nfnet(image=64).but(shape).build().eval()
    for stage in model.stages:
        for block in stage.blocks:
            block.gain.fill_(1)
    predicted, seen = [], []
    for stage in model.stages:
        for block in stage.blocks:
            predicted.append(block.beta**-2)
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].var((0, 2, 3)).mean().item()))
    model.features(torch.randn(4, 3, 64, 64))
    assert predicted == pytest.approx([1, 1.04, 1.08, 1.12, 1.16, 1.04, 1.08, 1.12])
    # Noise loses variance where squares are averaged, between the stages, which the prediction does not know.
    ratios = torch.tensor(seen[:5]) / torch.tensor(predicted[:5])
    torch.testing.assert_close(ratios / ratios[0], torch.ones(5), atol=0.05, rtol=0)
    assert 0.7 < ratios[0] < 1.3


def test_spelled_as_resnets_bottleneck_a_network_is_a_resnet():
    """Its layers stand in the same order, so that the weights of one are those of the other."""
    resnet = fresh(SMALL["resnet"]).train()
    spelled = SMALL["residual"].but({"stem_width": 6}).build().train()
    spelled.load_state_dict(dict(zip(spelled.state_dict(), resnet.state_dict().values(), strict=True)))
    x = pictures(SMALL["resnet"])
    torch.testing.assert_close(spelled(x), resnet(x))
    torch.testing.assert_close(spelled.eval()(x), resnet.eval()(x))  # running averages, too
    assert count_parameters(ResidualConfig()) == COUNTS[vision_sizes.resnet]["50"]


@torch.no_grad()
def test_spelled_as_convnexts_block_a_network_is_a_convnext():
    convnext = fresh(SMALL["convnext"])
    spelled = SMALL["residual"].but({**CONVNEXT_WORDS, "widths": [8, 16]}).build()
    weights = {}
    for name, weight in convnext.state_dict().items():
        for ours, word in {
            "stem.patch.linear": "stem.0", "stem.norm": "stem.1", "down.norm": "down.0", "down.patch.linear": "down.1",
            "conv": "layers.0", "ffn.up": "layers.2", "ffn.out": "layers.4", "scale": "layers.5.scale",
        }.items():  # fmt: skip
            name = re.sub(rf"(^|\.){re.escape(ours)}\b", rf"\1{word}", name)
        name = re.sub(r"(blocks\.\d\.)norm", r"\1layers.1", name)
        weights[name] = weight
    own = spelled.state_dict()
    for name, weight in weights.items():
        if own[name].ndim == 4 and weight.ndim == 2:  # a convolution of squares, as a matrix
            side = own[name].shape[-1]
            weight = weight.view(len(weight), side, side, -1).permute(0, 3, 1, 2)
        own[name] = weight
    assert own.keys() == weights.keys()
    spelled.load_state_dict(own)
    x = pictures(SMALL["convnext"])
    torch.testing.assert_close(spelled(x), convnext(x), atol=1e-5, rtol=1e-4)
    full = {**CONVNEXT_WORDS, "blocks": [3, 3, 9, 3], "widths": [96, 192, 384, 768]}
    assert count_parameters(ResidualConfig().but(full)) == COUNTS[vision_sizes.convnext]["t"]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("in norm actt conv out", "actt.*did you mean act"),
        ("out conv in", 'one "in" and behind it one "out"'),
        ("in act out", "must look around once"),
        ("in conv scale out", '"scale" behind "out"'),
    ],
)
def test_a_block_that_cannot_be_is_refused(block, complaint):
    with pytest.raises(UserError, match=complaint):
        SMALL["residual"].but({"block": block})


@torch.no_grad()
def test_every_step_halves_where_it_says():
    """Any order of words fits any place where sides are halved."""
    for block in ("in act conv out", "in depthwise act out norm", "depthwise in act out", "in act out depthwise scale"):
        for down in ("block", "apart"):
            for norm in ("batch", "layer"):
                model = SMALL["residual"].but({"block": block, "down": down, "norm": norm}).build().eval()
                assert model.features(pictures(model.config)).shape == (2, 32, 4, 4)
