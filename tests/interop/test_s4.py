"""S4D's files against a model written here after the published description, by name, both ways."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.interop.loaded import Loaded
from onefold.interop.open import open_model
from onefold.interop.save import save
from onefold.models.vision import sizes as vision_sizes


def weights(width: int = 6, half: int = 4, depth: int = 2, channels: int = 3, classes: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {}
    for name, module in {"encoder": nn.Linear(channels, width), "decoder": nn.Linear(width, classes)}.items():
        found |= {f"{name}.{leaf}": tensor for leaf, tensor in module.state_dict().items()}
    for i in range(depth):
        layer = f"s4_layers.{i}."
        found |= {
            f"{layer}D": torch.randn(width),
            f"{layer}kernel.C": torch.randn(width, half, 2),
            f"{layer}kernel.log_dt": torch.rand(width) - 4,
            f"{layer}kernel.log_A_real": torch.randn(width, half),
            f"{layer}kernel.A_imag": 3 * torch.arange(half).repeat(width, 1) + torch.rand(width, half),
            f"{layer}output_linear.0.weight": torch.randn(2 * width, width, 1),
            f"{layer}output_linear.0.bias": torch.randn(2 * width),
            f"norms.{i}.weight": torch.randn(width),
            f"norms.{i}.bias": torch.randn(width),
        }
    return found


def theirs(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits for sequences [B, L, channels], layer by layer, by plain sums in fp64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x = F.linear(x.double(), w["encoder.weight"], w["encoder.bias"])
    for i in range(2):
        layer = f"s4_layers.{i}."
        A = torch.complex(-w[f"{layer}kernel.log_A_real"].exp(), w[f"{layer}kernel.A_imag"])
        step = A * w[f"{layer}kernel.log_dt"].exp()[:, None]
        C = torch.view_as_complex(w[f"{layer}kernel.C"]) * (step.exp() - 1) / A
        kernel = 2 * (C[..., None] * (step[..., None] * torch.arange(x.shape[1])).exp()).sum(1).real  # [H, L]
        y = w[f"{layer}D"] * x
        for t in range(x.shape[1]):
            y[:, t] += (kernel[:, : t + 1].flip(1).T * x[:, : t + 1]).sum(1)
        y = F.linear(F.gelu(y), w[f"{layer}output_linear.0.weight"][..., 0], w[f"{layer}output_linear.0.bias"])
        x = F.layer_norm(x + F.glu(y), x.shape[-1:], w[f"norms.{i}.weight"], w[f"norms.{i}.bias"])
    return F.linear(x.mean(1), w["decoder.weight"], w["decoder.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_logits_from_files_and_back(tmp_path: Path, prefix):
    stored = weights()
    file = tmp_path / "ckpt.pth"
    torch.save({"model": {prefix + name: tensor for name, tensor in stored.items()}, "acc": 0.1, "epoch": 3}, file)
    loaded = open_model(file)
    pixels = torch.randn(2, 3, 8, 8)
    want = theirs(stored, pixels.flatten(2).mT)
    torch.testing.assert_close(loaded.model(pixels).double(), want, atol=1e-5, rtol=1e-5)
    assert open_model(file).config == loaded.config
    save(loaded, tmp_path / "again.pt", "s4")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_what_these_files_cannot_hold_is_refused(tmp_path: Path):
    missing = weights()
    del missing["s4_layers.1.D"]
    torch.save(missing, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"lacks s4_layers\.1\.D"):
        open_model(tmp_path / "a.pt")
    torch.save(weights(), tmp_path / "b.pt")
    loaded = open_model(tmp_path / "b.pt")
    both_ways = loaded.config.but({"block.mixer.causal": False})
    for config in (both_ways, vision_sizes.vit("ti/16").but({"depth": 1, "image": 32})):
        with pytest.raises(UserError, match="S4D alone"):
            save(Loaded(config, config.build(), None, {}), tmp_path / "c.pt", "s4")
    assert not (tmp_path / "c.pt").exists()
