"""Small decoders with weights large enough that a wrong mask, position or row shows."""

import torch

from onefold.models import families
from onefold.models.transformer import Decoder, DecoderConfig

SMALL = {"vocab": 61, "width": 24, "depth": 2, "context": 64, "block.mixer.heads": 4, "block.ffn.width": 40}


def config(family: str, **changes) -> DecoderConfig:
    grouped = {} if family in ("gpt2", "pythia") else {"block.mixer.kv_heads": 2}
    window = {"block.mixer.window": 5} if family == "mistral" else {}
    return getattr(families, family)().but({**SMALL, **grouped, **window, **changes})


def decoder(config: DecoderConfig, seed: int = 0, scale: float = 0.2) -> Decoder:
    torch.manual_seed(seed)
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=scale)
    return model
