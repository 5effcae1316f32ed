"""Picture models in published files: what others wrote we read, what we write they read, with the same logits."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import numpy as np
import pytest
import torch
import transformers

from onefold.core.errors import UserError
from onefold.data.pictures.reader import PictureReader
from onefold.infer.look import look
from onefold.interop.loaded import Loaded
from onefold.interop.table import own_weights
from onefold.interop.vision import convnets
from onefold.interop.vision.folder import knows, load_vision, save_vision, write_config
from onefold.interop.vision.reader import read_huggingface, read_timm, write_huggingface, write_timm
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes
from tests.interop.timm_oracle import timm

TOLERANCE = 1e-4
_VIT = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=32, patch_size=8,
    num_labels=5,
)  # fmt: skip
HUGGINGFACE = {
    "vit": ("ViT", "ForImageClassification", _VIT),
    "vit-grey-tanh": (
        "ViT", "ForImageClassification",
        _VIT | dict(num_channels=1, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3, qkv_bias=False),
    ),
    "vit-bare": ("ViT", "Model", _VIT),
    "convnext": (
        "ConvNext", "ForImageClassification",
        dict(
            hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_stages=3, image_size=64, num_labels=5, layer_norm_eps=1e-3
        ),
    ),
    "convnext-unscaled": (
        "ConvNext", "ForImageClassification",
        dict(
            hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=32, num_labels=3, patch_size=2,
            layer_scale_init_value=0.0, hidden_act="relu", num_channels=2,
        ),
    ),
    "convnext-bare": ("ConvNext", "Model", dict(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=32)),
}  # fmt: skip
_TIMM_VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
TIMM = {
    "vit": ("vit_tiny_patch16_224", _TIMM_VIT),
    "vit-scaled": ("vit_base_patch16_224", _TIMM_VIT | dict(init_values=0.1, qkv_bias=False, mlp_ratio=3)),
    "vit-mean": ("vit_small_patch32_224", _TIMM_VIT | dict(global_pool="avg", in_chans=1)),
    "vit-mean-before": (
        "vit_small_patch32_224", _TIMM_VIT | dict(global_pool="avg", class_token=False, fc_norm=False)
    ),
    "convnext": ("convnext_tiny", dict(depths=[1, 1, 2, 1], dims=[8, 12, 16, 24], num_classes=5)),
    "convnext-kernel": (
        "convnext_base",
        dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 8], num_classes=5, kernel_sizes=5, ls_init_value=0.1, in_chans=1),
    ),
    "nfnet": (
        "dm_nfnet_f0",
        dict(
            depths=[1, 2, 2, 1], channels=[32, 64, 64, 32], stem_chs=16, group_size=16, num_features=64, num_classes=5
        ),
    ),
}  # fmt: skip


@torch.no_grad()
def randomised(model):
    """Every weight away from its start, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        wide = parameter.ndim > 1 and min(parameter.shape[:2]) > 1
        parameter.copy_(noise * parameter[0].numel() ** -0.5 if wide else 0.5 + 0.3 * noise)
    return model.eval()


def pictures(config, rows=2):
    return torch.randn(rows, config.channels, config.image, config.image, generator=torch.Generator().manual_seed(4))


def huggingface(case: str, folder, **changes):
    name, task, settings = HUGGINGFACE[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings | changes)
    model = randomised(getattr(transformers, name + task)(config))
    model.save_pretrained(folder)
    return model


def say(model, x):
    """Logits, or the pooled features of a model without a classifier."""
    said = model(x)
    if isinstance(said, torch.Tensor):
        return said
    if hasattr(said, "logits"):
        return said.logits
    # A bare ViT has a pooler of its own, which nobody else uses; what a classifier would see is the class token.
    return said.last_hidden_state[:, 0] if said.last_hidden_state.ndim == 3 else said.pooler_output


@torch.no_grad()
@pytest.mark.parametrize("case", HUGGINGFACE)
def test_huggingface_logits_equal_and_back(case, tmp_path):
    theirs = huggingface(case, tmp_path / "theirs")
    loaded = load_vision(tmp_path / "theirs")
    x = pictures(loaded.config)
    expected = say(theirs, x)
    assert expected.std() > 0.1  # a model that says nothing would agree with anything
    assert (loaded.model(x) - expected).abs().max() < TOLERANCE

    save_vision(tmp_path / "ours", loaded)
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert (say(back, x) - expected).abs().max() < 1e-5
    for name, parameter in theirs.named_parameters():
        if not name.startswith("pooler."):
            assert torch.equal(back.get_parameter(name), parameter), name


@torch.no_grad()
@pytest.mark.parametrize("case", TIMM)
def test_timm_logits_equal_and_back(case, tmp_path):
    library = timm()
    architecture, arguments = TIMM[case]
    theirs = randomised(library.create_model(architecture, **arguments))
    side = arguments.get("img_size", 64)
    library.models.save_for_hf(
        theirs, tmp_path / "theirs", model_args=arguments, safe_serialization=True,
        data_config={"input_size": (arguments.get("in_chans", 3), side, side), "crop_pct": 0.8},
    )  # fmt: skip
    loaded = load_vision(tmp_path / "theirs")
    assert loaded.config.image == side
    x = pictures(loaded.config)
    expected = theirs(x)
    assert expected.std() > 0.1
    assert (loaded.model(x) - expected).abs().max() < TOLERANCE * max(1, expected.abs().max())
    features = theirs.forward_features(x)
    assert (loaded.model.features(x) - features).abs().max() < TOLERANCE * max(1, features.abs().max())

    save_vision(tmp_path / "ours", loaded)
    back = library.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert (back(x) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@torch.no_grad()
def test_timm_resnet_logits_equal_and_back():
    library = timm()
    theirs = randomised(library.create_model("resnet50", layers=[1, 2, 1, 1], channels=[4, 8, 8, 8], num_classes=5))
    for name, buffer in theirs.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 2)
    config = vision_sizes.resnet(image=64, classes=5).but({"blocks": [1, 2, 1, 1], "widths": [4, 8, 8, 8]})
    model, names = config.build().eval(), convnets.FORMATS[-1].names(config)
    model.load_state_dict(names.read(own_weights(model), theirs.state_dict(), "here"))
    x = pictures(config)
    expected = theirs(x)
    assert (model(x) - expected).abs().max() < TOLERANCE * max(1, expected.abs().max())
    written = names.write(own_weights(model))
    assert all(torch.equal(written[name], t) for name, t in theirs.state_dict().items() if "num_batches" not in name)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("vit_tiny_patch16_224", vision_sizes.vit("ti/16")),
        ("vit_large_patch16_224", vision_sizes.vit("l/16")),
        ("convnext_tiny", vision_sizes.convnext("t")),
        ("convnext_xlarge", vision_sizes.convnext("xl")),
        ("dm_nfnet_f0", vision_sizes.nfnet("f0")),
        ("dm_nfnet_f6", vision_sizes.nfnet("f6")),
        ("resnet152", vision_sizes.resnet("152")),
    ],
)
def test_published_sizes_are_timms(architecture, config):
    with torch.device("meta"):
        theirs = timm().create_model(architecture, num_classes=1000)
    assert count_parameters(config) == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_places_of_larger_pictures_are_timms():
    theirs = randomised(timm().create_model("vit_tiny_patch16_224", **_TIMM_VIT, dynamic_img_size=True))
    config = vision_sizes.vit("ti/16", image=32, classes=5).but(
        {"patch": 8, "width": 24, "depth": 2, "block.ffn.width": 96}
    )
    model = config.build().eval()
    format = write_config(config, "timm")[0]
    model.load_state_dict(format.names(config).read(own_weights(model), theirs.state_dict(), "here"))
    for shape in ((32, 32), (48, 64), (16, 24)):
        x = torch.randn(2, 3, *shape)
        torch.testing.assert_close(model(x), theirs(x), atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("published", [False, True])
def test_masked_autoencoders_predict_the_same_and_back(published, tmp_path):
    settings = dict(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=32, patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=20, norm_pix_loss=True, mask_ratio=0.6, layer_norm_eps=1e-3,
    )  # fmt: skip
    theirs = randomised(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**settings)))
    theirs.save_pretrained(tmp_path / "theirs")
    if published:  # as the files on the hub spell the decoder's layers
        respell(tmp_path / "theirs" / "model.safetensors")
    loaded = load_vision(tmp_path / "theirs")
    x, noise = pictures(loaded.config), torch.rand(2, 16)
    said = theirs(x, noise=noise)
    kept = noise.argsort(1)[:, : loaded.config.seen(16)]
    assert torch.equal(torch.ones(2, 16).scatter(1, kept, 0), said.mask)
    prediction = loaded.model.fill_in(x, kept)
    assert said.logits.std() > 0.1
    assert (prediction - said.logits).abs().max() < TOLERANCE
    torch.testing.assert_close(loaded.model.reconstruct(x)[1], theirs.patchify(x))

    save_vision(tmp_path / "ours", loaded)
    back = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
    assert (back(x, noise=noise).logits - said.logits).abs().max() < 1e-5


def respell(file):
    from safetensors.torch import load_file, save_file

    layers = ("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")
    save_file({name.replace(*layers): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_how_pictures_are_read_travels_along(tmp_path):
    four = dict(hidden_sizes=[8] * 4, depths=[1] * 4, num_stages=4, layer_norm_eps=1e-6)
    huggingface("convnext", tmp_path / "theirs", id2label=dict(enumerate("abcde")), **four)
    preprocessor = {
        "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3],
        "size": {"shortest_edge": 64}, "crop_pct": 0.875, "do_resize": True,
    }  # fmt: skip
    assert load_vision(tmp_path / "theirs").processor is None
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    loaded = load_vision(tmp_path / "theirs")
    expected = PictureReader(
        side=64, resize=73, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), classes=("a", "b", "c", "d", "e")
    )
    assert loaded.processor == expected
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"image_std": [0, 1, 1]}))
    with pytest.raises(UserError, match=r"theirs/preprocessor_config.json: image_std must be numbers above 0"):
        load_vision(tmp_path / "theirs")
    for library in ("huggingface", "timm"):
        save_vision(tmp_path / library, loaded, library=library)
        assert load_vision(tmp_path / library).processor == expected


def smooth(height=90, width=150):
    """A picture that has no edges, so that half a pixel to one side makes no difference to speak of."""
    rows, columns = np.mgrid[:height, :width]
    parts = (rows / height, columns / width, 0.5 + 0.5 * np.sin(rows / 60 + columns / 90))
    return np.stack([np.rint(255 * part) for part in parts], axis=2).astype(np.uint8)


def processor(preprocessor, folder):
    """transformers' own."""
    name = preprocessor["image_processor_type"]
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    try:
        return getattr(transformers, name).from_pretrained(folder)
    except ImportError as error:
        pytest.skip(f"transformers' {name} cannot be had here: {error}")


def assert_seen_alike(theirs, seen):
    """Both from 0 to 255."""
    difference = (theirs - seen.float()).abs()
    assert difference.max() < 4
    assert difference.mean() < 2


_SCALE = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 255}
_CROPPED = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = {
    "vit": ("vit", "ViT", {"size": {"height": 32, "width": 32}}, {"squeeze": True}),
    "vit-bicubic": (
        "vit", "ViT", {"size": {"height": 32, "width": 32}, "resample": 3},
        {"squeeze": True, "interpolation": "bicubic"},
    ),
    "deit": ("vit", "DeiT", {"size": {"height": 40, "width": 40}, **_CROPPED}, {"squeeze": True, "resize": 40}),
    "clip": ("vit", "CLIP", {"size": {"shortest_edge": 32}, **_CROPPED}, {}),
    "clip-larger": ("vit", "CLIP", {"size": {"shortest_edge": 40}, **_CROPPED}, {"resize": 40}),
    "convnext": ("convnext", "ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}, {"resize": 40}),
    "convnext-384": (
        "convnext", "ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.8}, {"side": 384, "squeeze": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_pictures_are_seen_as_transformers_sees_them_and_back(case, tmp_path):
    kind, name, settings, expected = PROCESSORS[case]
    published = {"image_processor_type": f"{name}ImageProcessor", "resample": 2, **settings, **_SCALE}
    config = getattr(vision_sizes, kind)(image=32)
    reader = read_huggingface({}, published, config)
    assert reader == PictureReader(**{"side": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3} | expected)
    picture = smooth()
    theirs = processor(published, tmp_path)(picture, return_tensors="pt").pixel_values[0] * 255
    assert_seen_alike(theirs, look(picture, reader))
    written = write_huggingface(reader)
    assert read_huggingface({}, written, config) == reader
    back = processor(written, tmp_path)(picture, return_tensors="pt").pixel_values[0] * 255
    assert_seen_alike(back, look(picture, reader))


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("vit", {"size": 64, "feature_extractor_type": "ViTFeatureExtractor"}, {"squeeze": True}),
        ("vit", {"size": 64}, {"squeeze": True}),
        ("vit", {"do_normalize": True}, {"squeeze": True}),
        ("vit", {"size": 72, "do_center_crop": True, "crop_size": 64, "default_to_square": False}, {"resize": 72}),
        ("vit", {"size": {"shortest_edge": 64}}, {}),
        ("convnext", {"size": 64, "crop_pct": 1.0, "feature_extractor_type": "ConvNextFeatureExtractor"}, {}),
        ("convnext", {"size": 64}, {"resize": 73}),
        ("convnext", {"size": 64, "crop_pct": 0}, {"resize": 73}),
        ("convnext", {"size": 384, "crop_pct": 1.0}, {"side": 384, "squeeze": True}),
    ],
)
def test_older_files_say_less(kind, said, expected):
    config = getattr(vision_sizes, kind)(image=64)
    assert read_huggingface({}, said, config) == PictureReader(
        **{"side": 64, "channels": 3, "mean": (0.5,), "std": (0.5,)} | expected
    )


def test_grey_pictures_stay_grey_for_transformers(tmp_path):
    reader = PictureReader(side=32, channels=1, mean=(0.0,), std=(1.0,))
    picture = smooth()[..., :1]
    theirs = processor(write_huggingface(reader), tmp_path)(picture, return_tensors="pt").pixel_values[0] * 255
    assert theirs.shape == (1, 32, 32)
    assert_seen_alike(theirs, look(picture, reader))


def test_timm_says_how_pictures_are_cut_both_ways():
    config = vision_sizes.vit(image=64, classes=0)
    scale = {"mean": [0.5] * 3, "std": [0.5] * 3}

    def read(**said):
        return read_timm({"pretrained_cfg": {**scale, **said}}, config)

    for said, expected in [
        ({"crop_pct": 1.0}, {}),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, {"squeeze": True}),
        ({"crop_pct": 0.8, "crop_mode": "squash"}, {"squeeze": True, "resize": 80}),
        ({"crop_pct": 0.8, "crop_mode": "center"}, {"resize": 80}),
        ({"crop_pct": 0}, {"resize": 73}),  # as timm reads it
        ({}, {"resize": 73}),
        ({"crop_pct": 2}, {"resize": 32}),
    ]:
        reader = read(**said)
        assert reader == PictureReader(**{"side": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3} | expected)
        back = read_timm({"pretrained_cfg": write_timm(reader)}, config)
        assert back == (reader if reader.resize != 32 else reader.but({"resize": None}))
    for resize in range(65, 400):
        reader = read().but({"resize": resize})
        assert read_timm({"pretrained_cfg": write_timm(reader)}, config) == reader
    for missing in ({"mean": None}, {"std": None}, {"mean": []}):
        assert read(**missing) is None


def test_padding_to_a_square_is_not_taken_for_something_else_without_a_word(capsys):
    config, scale = vision_sizes.vit(image=64), {"mean": [0.5] * 3, "std": [0.5] * 3}
    for mode in ("center", "squash", None, "border"):
        reader = read_timm({"pretrained_cfg": {**scale, "crop_mode": mode}}, config)
        assert ("crop_mode=border is not known" in capsys.readouterr().err) == (mode == "border")
        assert reader.squeeze == (mode == "squash")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"crop_pct": "most"}, "crop_pct must be a number"),
        ({"crop_pct": -1}, "crop_pct must be a number"),
        ({"crop_pct": 1e-300}, "crop_pct must be a number"),
        ({"mean": "half"}, "mean must be numbers"),
        ({"mean": [None, 0.5, 0.5]}, "mean must be numbers"),
        ({"std": [0, 0.5, 0.5]}, "std must be numbers above 0"),
    ],
)
def test_scales_that_are_none_are_refused(said, message):
    scale = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(UserError, match=f"pretrained_cfg.{message}"):
        read_timm({"pretrained_cfg": {**scale, **said}}, vision_sizes.vit(image=64))
    renamed = {{"mean": "image_mean", "std": "image_std"}.get(name, name): value for name, value in said.items()}
    with pytest.raises(UserError, match=message):
        read_huggingface({}, {"size": 64, **renamed}, vision_sizes.convnext(image=64))


def test_a_fresh_model_is_saved_where_a_library_knows_it(tmp_path):
    small = {"patch": 8, "width": 24, "depth": 1, "block.ffn.width": 40}
    config = vision_sizes.vit("ti/16", image=16, classes=3).but(small)
    for changes, library in [({}, "huggingface"), ({"block.layer_scale": 0.1, "drop_path": 0.1}, "timm")]:
        model = config.but(changes).build()
        save_vision(tmp_path / library, Loaded(model.config, model, None))
        said = json.loads((tmp_path / library / "config.json").read_text())
        assert knows(said)
        assert ("model_type" in said) == (library == "huggingface")
        back = load_vision(tmp_path / library).model
        x = pictures(config)
        torch.testing.assert_close(back(x), model.eval()(x))


def test_what_cannot_be_said_or_read_is_named(tmp_path):
    config = vision_sizes.vit("ti/16").but({"block.layer_scale": 0.1, "block.residual": "parallel"})
    with pytest.raises(UserError, match=r"block.residual is parallel, not pre; save it with format='onefold'"):
        write_config(config, "huggingface")
    with pytest.raises(UserError, match=r"block.layer_scale is 0.1"):
        write_config(config.but({"block.residual": "pre"}), "huggingface", only=True)

    huggingface("vit", tmp_path / "vit")
    content = json.loads((tmp_path / "vit" / "config.json").read_text())
    for changes, said in [
        ({"model_type": "swin"}, "'swin' is not supported; supported are vit"),
        ({"hidden_size": 48}, "config|configuration"),
        ({"image_size": [32, 48]}, "two equal ones"),
        ({"hidden_act": "mish"}, "the activation 'mish'"),
        ({"num_hidden_layers": 3}, "lacks vit.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "does not know what to do with vit.encoder.layer.1"),
    ]:
        (tmp_path / "vit" / "config.json").write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=said):
            load_vision(tmp_path / "vit")
    timm_like = {"architecture": "vit_tiny_patch16_224", "model_args": {"reg_tokens": 4}}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(timm_like))
    with pytest.raises(UserError, match=r"model_args.reg_tokens is not supported"):
        load_vision(tmp_path / "vit")
