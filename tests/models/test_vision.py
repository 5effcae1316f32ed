"""Contracts of every picture model: shapes, gradients, depths, beginning with other weights."""

import pytest
import torch

from onefold.models.vision import sizes as vision_sizes
from onefold.models.vision.residual import ResidualConfig

SMALL = {
    "vit": vision_sizes.vit("ti/16", image=32, classes=5).but(
        {"patch": 8, "width": 24, "depth": 2, "block.mixer.heads": 3, "block.ffn.width": 40}
    ),
    "convnext": vision_sizes.convnext(image=32, classes=5).but({"blocks": [1, 2], "widths": [8, 16]}),
    "resnet": vision_sizes.resnet(image=32, classes=5).but({"blocks": [1, 2], "widths": [4, 8], "stem": 6}),
    "residual": ResidualConfig(image=32, classes=5, blocks=(1, 2), widths=(16, 32), stem_width=8),
    "nfnet": vision_sizes.nfnet(image=32, classes=5).but(
        {"blocks": [1, 2], "widths": [16, 32], "stem": 8, "group": 8, "drop_path": 0.0, "dropout": 0.0}
    ),
}
CONVNEXT_WORDS = {
    **{"block": "depthwise norm in act out scale", "after": "", "inner": 4.0, "kernel": 7, "stem_width": None},
    **{"norm": "layer", "activation": "gelu", "stem": "patch", "down": "apart"},
}
SMALL["residual as convnext"] = SMALL["residual"].but(CONVNEXT_WORDS)
SMALL["vit mean"] = SMALL["vit"].but(
    {"pool": "mean", "norm_pooled": True, "block.layer_scale": 0.1, "class_token": False, "channels": 1}
)


def fresh(config, seed: int = 0) -> torch.nn.Module:
    """A model whose parameters all matter: layer scales and gains that start at zero would hide what they multiply."""
    torch.manual_seed(seed)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5))
    return model


def pictures(config, rows: int = 2, side: int | None = None) -> torch.Tensor:
    side = side or config.image
    return torch.randn(rows, config.channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SMALL, ids=list(SMALL))
def config(request):
    return SMALL[request.param]


def test_a_gradient_reaches_every_parameter(config):
    model = fresh(config).train()
    model(pictures(config)).logsumexp(-1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_features_head_and_pictures_of_another_size(config):
    model = fresh(config).eval()
    x = pictures(config)
    features = model.features(x)
    assert torch.equal(model.head(features), model(x))
    assert model.pool(features).shape == (2, model.pool(features).shape[1])
    assert model(x).shape == (2, 5)
    assert torch.isfinite(model(pictures(config, side=config.image + 16))).all()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), atol=1e-5, rtol=1e-4)  # rows do not see each other


@torch.no_grad()
def test_without_classes_there_is_no_classifier_and_the_rest_is_the_same(config):
    model, bare = fresh(config).eval(), config.but({"classes": 0}).build().eval()
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("classifier.")})
    x = pictures(config)
    torch.testing.assert_close(bare(x), model.pool(model.features(x)))
    assert [n for n in model.state_dict() if n.startswith("classifier.")] == ["classifier.weight", "classifier.bias"]


def test_no_parameter_is_a_scalar_which_fsdp2_would_refuse(config):
    assert [name for name, parameter in config.build().named_parameters() if parameter.ndim == 0] == []


def test_depths_rise_from_the_pixels_to_the_classifier(config):
    model = config.build()
    depths = [model.depth_of(name) for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert set(depths) == set(range(model.depths + 1))
    assert model.depth_of("classifier.weight") == model.depths


@torch.no_grad()
def test_it_begins_with_the_weights_of_one_for_other_classes(config):
    model, other = fresh(config).eval(), config.but({"classes": 3}).build().eval()
    own = other.classifier.weight.clone()
    other.load_state_dict(other.adopt(dict(model.state_dict())))
    x = pictures(config)
    torch.testing.assert_close(other.features(x), model.features(x))
    assert torch.equal(other.classifier.weight, own)


@torch.no_grad()
def test_as_many_other_classes_keep_the_classifier(config):
    model, other = fresh(config), config.build()
    other.load_state_dict(other.adopt(dict(model.state_dict())))
    assert torch.equal(other.classifier.weight, model.classifier.weight)


def test_configs_are_plain_values(config):
    assert type(config).from_json(config.to_json()) == config
