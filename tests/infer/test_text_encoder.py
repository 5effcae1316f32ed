"""A loaded encoder embeds, fills masks and classifies; verbs that need a writer say what it does instead."""

import sys

import pytest
import torch

import onefold
from onefold.cli.main import main
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.infer.model import as_writer
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.artifact import save_artifact
from onefold.models import encoder_families as families

TEXTS = ["a loaded encoder embeds", "fills masks", "", "and classifies texts " * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([__doc__] * 3, 300, special=ENCODER_TOKENS)


def opened(folder, tokenizer, card=None, **changes) -> TextEncoder:
    small = {"width": 24, "depth": 2, "block.mixer.heads": 4, "block.ffn.width": 40}
    config = families.bert().but({"vocab": 300, "context": 32, "embed.position.context": 32, **small, **changes})
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_artifact(folder / "model", model, config, tokenizer, card)
    return onefold.load(folder / "model")


@torch.no_grad()
def test_vectors_do_not_depend_on_what_they_are_made_with(tmp_path, tokenizer):
    model = opened(tmp_path, tokenizer)
    together = model.embed(TEXTS, normalize=False)
    for text, vector in zip(TEXTS, together):
        ids = tokenizer.encode_framed([text], length=32)[0][0]
        assert len(ids) <= 32
        features = model.network.features(torch.tensor([ids]))[0]
        torch.testing.assert_close(vector, features.mean(0), atol=1e-5, rtol=1e-4)
        first = model.embed([text], pooling="first", normalize=False)[0]
        torch.testing.assert_close(first, features[0], atol=1e-5, rtol=1e-4)
        last = model.embed([text], pooling="last", normalize=False)[0]
        torch.testing.assert_close(last, features[-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed(TEXTS).norm(dim=1), torch.ones(4))
    with pytest.raises(UserError, match="a list of texts"):
        model.embed("one")


@torch.no_grad()
def test_masks_are_filled_with_what_the_head_says(tmp_path, tokenizer):
    model = opened(tmp_path, tokenizer)
    found = model.fill_mask("a <mask> encoder <mask>", top=3)
    assert [len(place) for place in found] == [3, 3]
    ids = tokenizer.encode_framed(["a <mask> encoder <mask>"], special=True)[0][0]
    place = ids.index(tokenizer.mask)
    assert tokenizer.decode(ids[1:place]) == "a"  # what is hidden begins with the blank, as words of a text do
    share, best = model.network(torch.tensor([ids]))[0, place].softmax(-1).max(-1)
    assert found[0][0][0] == tokenizer.decode([int(best)], special=True).strip()
    assert found[0][0][1] == pytest.approx(float(share), abs=1e-6)
    with pytest.raises(UserError, match="put <mask> where a word is missing"):
        model.fill_mask("nothing is hidden")


def test_texts_and_pairs_are_classified(tmp_path, tokenizer):
    model = opened(tmp_path, tokenizer, {"classes": ["bad", "good"]}, masked=None)
    assert model.classes == ("bad", "good")
    shares = model.classify(TEXTS)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    alone = torch.cat([model.classify([text]) for text in TEXTS])
    torch.testing.assert_close(shares, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.classify(TEXTS, TEXTS[::-1]), shares, atol=1e-3)
    with pytest.raises(UserError, match="has no head that names hidden tokens"):
        model.fill_mask("<mask>")


def test_what_it_cannot_do_is_a_line(tmp_path, tokenizer, monkeypatch, capsys):
    tags = opened(tmp_path, tokenizer, masked=None, pooler=False, classes=5, task="token")
    with pytest.raises(UserError, match="does not classify texts, it tags words"):
        tags.classify(TEXTS)
    with pytest.raises(UserError, match="reads text and writes none"):
        as_writer(tags, "model")
    with pytest.raises(UserError, match="no format named 'gguf' for a model of kind encoder; use onefold, hf, esm"):
        tags.save(tmp_path / "out", "gguf")
    for verb, argument, line in (
        ("generate", "Once", "reads text and writes none"),
        ("classify", "Once", "tags words: use tag"),
        ("fill", "<mask>", "no head that names hidden tokens"),
    ):
        assert run(monkeypatch, verb, tmp_path / "model", argument) == 2
        assert line in capsys.readouterr().err


def run(monkeypatch, *command) -> int:
    """Its exit code."""
    monkeypatch.setattr(sys, "argv", ["onefold", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_verbs_print_what_it_says(tmp_path, tokenizer, monkeypatch, capsys):
    opened(tmp_path, tokenizer)
    assert run(monkeypatch, "fill", tmp_path / "model", "a <mask> encoder", "--top", "2") == 0
    assert len(capsys.readouterr().out.strip().split(", ")) == 2
    opened(tmp_path, tokenizer, {"classes": ["bad", "good"]}, masked=None)
    assert run(monkeypatch, "classify", tmp_path / "model", "a fine film", "another") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["a fine film", "another"]
