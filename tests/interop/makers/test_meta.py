"""Meta's and Mistral's own folders, against a small model written here as their papers and reference code have it."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from onefold.core.errors import UserError
from onefold.interop.makers.meta import ffn_width, load_makers

PARAMS = {
    "dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 20,
    "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5,
}  # fmt: skip
VOCAB, FFN = 90, 180


def weights_for(params: dict, ffn: int, head: int, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    width, queries, keys = params["dim"], params["n_heads"] * head, params["n_kv_heads"] * head
    shapes = {"tok_embeddings.weight": (VOCAB, width), "norm.weight": (width,), "output.weight": (VOCAB, width)}
    for i in range(params["n_layers"]):
        at, ff = f"layers.{i}.attention", f"layers.{i}.feed_forward"
        shapes |= {f"{at}.wq.weight": (queries, width), f"{at}.wk.weight": (keys, width)}
        shapes |= {f"{at}.wv.weight": (keys, width), f"{at}.wo.weight": (width, queries)}
        shapes |= {f"{ff}.w1.weight": (ffn, width), f"{ff}.w3.weight": (ffn, width), f"{ff}.w2.weight": (width, ffn)}
        shapes |= {f"layers.{i}.attention_norm.weight": (width,), f"layers.{i}.ffn_norm.weight": (width,)}
    return {
        name: (1 + 0.3 * torch.randn(shape)) if len(shape) == 1 else 0.2 * torch.randn(shape)
        for name, shape in shapes.items()
    }


def reference(params, weights, tokens, theta=10000.0, window=None, frequencies=None):
    """The reference forward: rotary pairs are neighbours, turned as complex numbers."""
    T, heads, groups = len(tokens), params["n_heads"], params["n_kv_heads"]
    x = weights["tok_embeddings.weight"][tokens]
    head = weights["layers.0.attention.wq.weight"].shape[0] // heads
    if frequencies is None:
        frequencies = theta ** (-torch.arange(0, head, 2) / head)
    turns = torch.polar(torch.ones(T, head // 2), torch.outer(torch.arange(T), frequencies))[:, None]

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weights[f"{name}.weight"]

    def turn(x):  # [T, H, head]
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns).flatten(-2)

    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (distance < 0) | (distance >= (window or T))
    for i in range(params["n_layers"]):
        y = norm(x, f"layers.{i}.attention_norm")
        q, k, v = ((y @ weights[f"layers.{i}.attention.w{n}.weight"].T).view(T, -1, head) for n in ("q", "k", "v"))
        q, k = turn(q), turn(k).repeat_interleave(heads // groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / head**0.5
        seen = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", seen, v.repeat_interleave(heads // groups, 1)).flatten(1)
        x = x + mixed @ weights[f"layers.{i}.attention.wo.weight"].T
        y = norm(x, f"layers.{i}.ffn_norm")
        w1, w2, w3 = (weights[f"layers.{i}.feed_forward.w{n}.weight"] for n in (1, 2, 3))
        x = x + (F.silu(y @ w1.T) * (y @ w3.T)) @ w2.T
    return norm(x, "norm") @ weights["output.weight"].T


def cut(name: str, tensor: torch.Tensor, shards: int, rows_of_embedding: bool) -> list[torch.Tensor]:
    """As tensor parallelism cuts: column-parallel layers by rows, row-parallel by columns, the embedding either way."""
    if tensor.ndim == 1:
        return [tensor] * shards
    if name.startswith("tok_embeddings"):
        return list(tensor.chunk(shards, 0 if rows_of_embedding else 1))
    return list(tensor.chunk(shards, 1 if name.endswith(("wo.weight", "w2.weight")) else 0))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (25,), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def difference(folder, expected, tokens) -> float:
    return (load_makers(folder).model(tokens[None])[0] - expected).abs().max().item()


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("rows_of_embedding", [False, True])
def test_metas_shards_are_joined_and_unturned(shards, rows_of_embedding, tokens, tmp_path):
    assert ffn_width(PARAMS) == FFN  # int(1.3 * int(2 * 4 * 48 / 3)) = 166, up to a multiple of 20
    weights = weights_for(PARAMS, FFN, 8)
    parts = {name: cut(name, tensor, shards, rows_of_embedding) for name, tensor in weights.items()}
    for i in range(shards):
        shard = {name: tensors[i].clone() for name, tensors in parts.items()} | {"rope.freqs": torch.ones(4)}
        torch.save(shard, tmp_path / f"consolidated.{i:02}.pth")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    expected = reference(PARAMS, weights, tokens)
    assert expected.std() > 0.1
    assert difference(tmp_path, expected, tokens) < 1e-4


def test_llama_3_scaling(tokens, tmp_path):
    params = PARAMS | {"rope_theta": 500000.0, "use_scaled_rope": True}
    weights = weights_for(params, FFN, 8)
    torch.save(weights, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    frequencies = []
    for frequency in (500000.0 ** (-torch.arange(0, 8, 2) / 8)).tolist():  # Meta's apply_scaling
        wavelength = 2 * torch.pi / frequency
        if wavelength < 8192 / 4:
            frequencies.append(frequency)
        elif wavelength > 8192:
            frequencies.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            frequencies.append((1 - smooth) * frequency / 8 + smooth * frequency)
    far = tokens.repeat(4)
    expected = reference(params, weights, far, frequencies=torch.tensor(frequencies))
    assert difference(tmp_path, expected, far) < 1e-4
    loaded = load_makers(tmp_path)
    assert loaded.config.block.mixer.position.scaling.factor == 8
    torch.save(weights | {"output.weight": weights["tok_embeddings.weight"]}, tmp_path / "consolidated.00.pth")
    assert load_makers(tmp_path).config.block.mixer.position.scaling.factor == 32  # a tied head: Llama 3.2


@pytest.mark.parametrize("window", [None, 5])
def test_mistrals_safetensors(window, tokens, tmp_path):
    params = {
        "dim": 40, "n_layers": 2, "head_dim": 12, "hidden_dim": 68, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
        "vocab_size": VOCAB, "rope_theta": 1e6,
    }  # fmt: skip
    if window:
        params |= {"sliding_window": window, "rope_theta": 10000.0}
    weights = weights_for(params, 68, 12)
    save_file(weights, tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text(json.dumps(params))
    expected = reference(params, weights, tokens, params["rope_theta"], window)
    assert difference(tmp_path, expected, tokens) < 1e-4
    assert load_makers(tmp_path).config.block.mixer.window == window


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe": {"num_experts": 8}}, "moe is not supported"),
        ({"dim": None}, "lacks dim"),
        ({"n_heads": "6"}, "wrong type"),
        ({"vocab_size": 91}, "a vocabulary of 90, params.json one of 91"),
        ({"multiple_of": 256}, "are|is"),
        ({"n_layers": 3}, "lacks layers.2"),
        ({"n_kv_heads": 3}, "does not fit"),
    ],
)
def test_what_params_json_says_is_checked(change, message, tmp_path):
    torch.save(weights_for(PARAMS, FFN, 8), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps({**PARAMS, **change}))
    with pytest.raises(UserError, match=message) as raised:
        load_makers(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_and_unlike_shards_are_named(tmp_path):
    weights = weights_for(PARAMS, FFN, 8)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    torch.save(weights, tmp_path / "consolidated.00.pth")
    torch.save(weights, tmp_path / "consolidated.02.pth")
    with pytest.raises(UserError, match=r"not complete: found \['00', '02'\]"):
        load_makers(tmp_path)
    weights.pop("norm.weight")
    torch.save(weights, tmp_path / "consolidated.01.pth")
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(UserError, match=r"norm.weight is not in all shards"):
        load_makers(tmp_path)
