"""Hugging Face folders: what transformers wrote we read, what we write transformers reads, with the same logits."""

import pytest
import torch
import transformers
from published_models import CASES

from onefold.interop.huggingface import load_folder, save_folder

TOLERANCE = 1e-4


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_and_back(case, saved, tokens, tmp_path):
    folder, theirs = saved(case)
    expected = logits(theirs, tokens).logits
    assert expected.std() > 0.1  # a model that says nothing would agree with anything
    loaded = load_folder(folder)
    assert not loaded.model.training
    assert (logits(loaded.model, tokens) - expected).abs().max() < TOLERANCE

    save_folder(tmp_path / "ours", loaded)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(back) is type(theirs)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    assert (logits(back.eval(), tokens).logits - expected).abs().max() < 1e-5  # their config says the same
