"""ESM's own files against the models of transformers that have the same weights, by a table of names of the test's."""

import re
from argparse import Namespace

import pytest
import torch

from onefold.core.errors import UserError
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.open import open_model
from onefold.interop.save import save
from onefold.interop.tensors import read_pickled, read_settings
from tests.interop.published_encoders import published

# their name in transformers → in fair-esm
TABLE = (
    (r"esm\.embeddings\.word_embeddings\.weight", "sentence_encoder.embed_tokens.weight"),
    (r"esm\.embeddings\.position_embeddings\.weight", "sentence_encoder.embed_positions.weight"),
    (r"esm\.embeddings\.layer_norm\.(\w+)", r"sentence_encoder.emb_layer_norm_before.\1"),
    (r"esm\.encoder\.layer\.(\d+)\.attention\.self\.query\.(\w+)", r"sentence_encoder.layers.\1.self_attn.q_proj.\2"),
    (r"esm\.encoder\.layer\.(\d+)\.attention\.self\.key\.(\w+)", r"sentence_encoder.layers.\1.self_attn.k_proj.\2"),
    (r"esm\.encoder\.layer\.(\d+)\.attention\.self\.value\.(\w+)", r"sentence_encoder.layers.\1.self_attn.v_proj.\2"),
    (
        r"esm\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)",
        r"sentence_encoder.layers.\1.self_attn.out_proj.\2",
    ),
    (
        r"esm\.encoder\.layer\.(\d+)\.attention\.LayerNorm\.(\w+)",
        r"sentence_encoder.layers.\1.self_attn_layer_norm.\2",
    ),
    (r"esm\.encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"sentence_encoder.layers.\1.fc1.\2"),
    (r"esm\.encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"sentence_encoder.layers.\1.fc2.\2"),
    (r"esm\.encoder\.layer\.(\d+)\.LayerNorm\.(\w+)", r"sentence_encoder.layers.\1.final_layer_norm.\2"),
    (r"esm\.encoder\.emb_layer_norm_after\.(\w+)", r"sentence_encoder.emb_layer_norm_after.\1"),
    (r"lm_head\.decoder\.weight", "lm_head.weight"),
    (r"lm_head\.(dense|layer_norm)\.(\w+)", r"lm_head.\1.\2"),
    (r"lm_head\.bias", "lm_head.bias"),
    (r"esm\.contact_head\.regression\.(\w+)", r"contact_head.regression.\1"),
)
SETTINGS = {"encoder_layers": 3, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 88, "encoder_attention_heads": 6}
LEARNED, ROTARY = "EsmForMaskedLM", "esm2"


def their_files(folder, case, without_head=False):
    """The .pt of ESM with the weights of a model of transformers, and that model."""
    model = published(case)
    found, head = {}, {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in TABLE:
            if re.fullmatch(pattern, name):
                named = re.sub(pattern, theirs, name)
                if named.startswith("contact_head."):
                    head[named] = tensor.clone()
                else:
                    found[f"encoder.{named}"] = tensor.clone()
    settings = {**SETTINGS, "token_dropout": True, "dropout": 0.0, "lr": [1e-4]}
    if case == ROTARY:
        content = {"args": None, "cfg": {"model": Namespace(_name="esm2", **settings)}, "model": found}
        found |= {f"encoder.sentence_encoder.layers.{i}.self_attn.rot_emb.inv_freq": torch.ones(4) for i in range(3)}
    else:
        content = {"args": Namespace(arch="roberta_large", max_positions=40, **settings), "model": found}
    torch.save(content, folder / f"{case}.pt")
    if not without_head:
        torch.save({"model": head}, folder / f"{case}-contact-regression.pt")
    return folder / f"{case}.pt", model


@pytest.fixture(params=[LEARNED, ROTARY])
def case(request):
    return request.param


def test_a_file_says_what_transformers_says(tmp_path, case):
    file, theirs = their_files(tmp_path, case)
    loaded = open_model(file)
    tokens = torch.randint(4, 24, (2, 20), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1], tokens[0, 5] = 0, 2, 32
    inside = torch.ones_like(tokens, dtype=torch.bool)
    inside[:, [0, -1]] = False
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        torch.testing.assert_close(loaded.model(tokens), expected, atol=1e-4, rtol=0)
        theirs.set_attn_implementation("eager")  # the other one does not tell its attention
        contacts = theirs.esm.predict_contacts(tokens, torch.ones_like(tokens))
        torch.testing.assert_close(loaded.model.contacts(tokens, inside)[:, 1:-1, 1:-1], contacts, atol=1e-4, rtol=0)
    assert loaded.tokenizer.encode("LA<C") == [4, 5, 3, 23]


def test_what_is_written_is_what_was_read(tmp_path, case):
    file, _ = their_files(tmp_path, case)
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / file.name
    save(open_model(file), again, "esm")
    for name in (file.name, f"{case}-contact-regression.pt"):
        theirs, ours = read_settings(tmp_path / name)[0], read_settings(tmp_path / "again" / name)[0]
        assert theirs.keys() == ours.keys()
        for key in theirs:
            if "inv_freq" not in key:  # theirs are never read; ours are the true ones
                assert torch.equal(theirs[key], ours[key]), key
    assert open_model(again).config == open_model(file).config
    TextEncoder(open_model(again)).save(tmp_path / "hf", "hf")
    assert open_model(tmp_path / "hf").config.contacts


def test_without_its_second_file_it_has_no_contact_head(tmp_path):
    file, _ = their_files(tmp_path, LEARNED, without_head=True)
    assert not open_model(file).config.contacts


def test_a_shared_head_has_no_vector_for_the_mask(tmp_path):
    """As published: the package zeroes that of the embedding, whose memory is the head's."""
    file, theirs = their_files(tmp_path, LEARNED)
    content = read(file)
    names = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
    content["model"][names[1]] = content["model"][names[0]]
    torch.save(content, file)
    weight = open_model(file).model.embed.token.weight
    assert not weight[32].any()
    assert torch.equal(weight[:32], theirs.lm_head.decoder.weight[:32])


def read(file):
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(file, weights_only=True)


class Hostile:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_files_that_would_run_something_are_refused(tmp_path, capsys):
    file, _ = their_files(tmp_path, LEARNED)
    content = read(file)
    content["args"].extra = Hostile()
    torch.save(content, file)
    with pytest.raises(UserError, match="could run code"):
        open_model(file)
    assert "never be printed" not in capsys.readouterr().out
    file, _ = their_files(tmp_path, LEARNED)
    with pytest.raises(UserError, match="more than tensors"):
        read_pickled(file)  # only where a format needs them are settings let in, and only for that file


def test_other_models_of_the_package_are_named(tmp_path):
    file, _ = their_files(tmp_path, LEARNED)
    content = read(file)
    content["args"].arch = "msa_transformer"
    torch.save(content, file)
    with pytest.raises(UserError, match="msa_transformer is not supported"):
        open_model(file)


def test_a_model_that_is_no_esm_is_not_written(tmp_path):
    published("RobertaForMaskedLM").save_pretrained(tmp_path / "roberta")
    with pytest.raises(UserError, match="no ESM: it differs in"):
        save(open_model(tmp_path / "roberta"), tmp_path / "other.pt", "esm")
