"""Attention to the source, word by word."""

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS, Tokenizer
from onefold.infer.evaluation.alignment import align, attention
from onefold.models import seq2seq_families as families
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig

SOURCE, TARGET = "two  young dogs", "zwei junge Hunde rennen"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([SOURCE, TARGET] * 3, 290, T5_TOKENS)


def transformer(depth: int = 3):
    sides = {f"{side}.depth": depth for side in ("encoder", "decoder")}
    blocks = ("encoder.block.mixer", "decoder.block.mixer", "decoder.block.cross")
    config = families.transformer().but({"vocab": 290, "width": 16, **sides, **{f"{b}.heads": 2 for b in blocks}})
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.5)
    return model


def test_words_are_sums_over_what_is_read_and_means_over_what_is_written(tokenizer):
    model = transformer()
    found = align(model, tokenizer, SOURCE, TARGET)
    assert (found.source, found.target) == (["two", "young", "dogs", "</s>"], TARGET.split())
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    read = [tokenizer.encode(text) for text in ("two", "  young", " dogs")]
    assert [*read[0], *read[1], *read[2]] == tokenizer.encode(SOURCE)
    ids = torch.tensor([[*tokenizer.encode(SOURCE), tokenizer.end]])
    tokens = torch.tensor([[tokenizer.pad, *tokenizer.encode(TARGET)]])
    with torch.no_grad():
        plain = attention(model.eval(), ids, tokens)[0]
    first = len(tokenizer.encode(TARGET.split()[0]))
    word = slice(len(read[0]), len(read[0]) + len(read[1]))
    np.testing.assert_allclose(found.weights[0, 1], plain[:first, word].sum(1).mean(), rtol=1e-5)


def test_the_layer_before_the_last_is_shown_unless_another_is_named(tokenizer):
    model, ids = transformer(), torch.tensor([[5, 6, 7]])
    model.eval()
    shown = [attention(model, ids, ids, layer) for layer in (0, 1, 2)]
    assert torch.equal(attention(model, ids, ids), shown[1])
    assert not torch.allclose(shown[0], shown[1])
    with pytest.raises(UserError, match="no decoder layer 3: it has 0 to 2"):
        attention(model, ids, ids, 3)


def test_an_lstm_with_attention_has_a_picture_too_and_others_say_why_not(tokenizer):
    config = RecurrentSeq2SeqConfig(vocab=290, width=8, depth=1)
    found = align(config.build(), tokenizer, SOURCE, TARGET)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="has no attention to a source"):
        align(config.but({"attention": False}).build(), tokenizer, SOURCE, TARGET)
    with pytest.raises(UserError, match="no words"):
        align(config.build(), tokenizer, SOURCE, "  ")
