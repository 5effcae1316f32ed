"""Fixtures of the tests of inference."""

import pytest

from onefold.models.transformer import Decoder
from tests.infer.small_models import config, decoder


@pytest.fixture(params=["gpt2", "pythia", "llama2", "mistral", "alibi"])
def model(request) -> Decoder:
    if request.param == "alibi":
        return decoder(config("llama2", **{"block.mixer.position": {"kind": "alibi"}, "block.mixer.window": 6}))
    return decoder(config(request.param))
