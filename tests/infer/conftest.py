"""Fixtures of the tests of inference."""

import pytest

from onefold.models.transformer import Decoder
from tests.infer.small_models import config, decoder


@pytest.fixture(params=["gpt2", "pythia", "llama2", "mistral", "alibi", "s4d"])
def model(request) -> Decoder:
    if request.param == "alibi":
        return decoder(config("llama2", **{"block.mixer.position": {"kind": "alibi"}, "block.mixer.window": 6}))
    if request.param == "s4d":
        return decoder(config("llama2").but({"block.mixer": {"kind": "s4d", "states": 8}}))
    return decoder(config(request.param))
