"""Encoder-decoders in Hugging Face folders: what transformers wrote we read, what we write transformers reads."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import onefold
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, T5_TOKENS, Tokenizer
from onefold.interop.artifact import load_artifact, save_artifact
from onefold.interop.huggingface import load_folder, save_folder
from onefold.interop.loaded import Loaded
from tests.interop.published_seq2seq import CASES, saved
from tests.models.test_seq2seq import MODELS, rough

TOLERANCE = 1e-4


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded sources, their mask, and targets."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 60, (3, 30), generator=generator)
    mask = (torch.arange(30)[None] < torch.tensor([30, 9, 2])[:, None]).long()
    return source, mask, torch.randint(3, 60, (3, 27), generator=generator)


@torch.no_grad()
def said(theirs, source, mask, target) -> torch.Tensor:
    return theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits


@torch.no_grad()
def ours(model, source, mask, target) -> torch.Tensor:
    return model(source, target, 1 - mask)


@pytest.mark.parametrize("case", CASES)
def test_padded_rows_say_the_same_and_back(case, tmp_path, capsys):
    theirs, given = saved(case, tmp_path / "theirs"), rows()
    expected = said(theirs, *given)
    assert expected.std() > 0.05  # a model that says nothing would agree with anything
    loaded = load_folder(tmp_path / "theirs")
    assert (ours(loaded.model, *given) - expected).abs().max() < TOLERANCE
    assert "not understood" not in capsys.readouterr().err

    save_folder(tmp_path / "ours", loaded)
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert back.config.architectures == [type(theirs).__name__]
    assert back.config.decoder_start_token_id == theirs.config.decoder_start_token_id
    assert getattr(back.generation_config, "forced_bos_token_id", None) == loaded.config.first
    for name, parameter in theirs.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    assert (said(back, *given) - expected).abs().max() < 1e-5  # their config says the same
    written, first = (set(load_file(tmp_path / f / "model.safetensors")) for f in ("ours", "theirs"))
    assert written == first

    save_artifact(tmp_path / "own", loaded.model, loaded.config, None, loaded.card)
    again = load_artifact(tmp_path / "own")
    assert again.config == loaded.config
    assert torch.equal(ours(again.model, *given), ours(loaded.model, *given))


def edited(folder, change=dict, **settings):
    """The folder with its tensors changed and keys of config.json set; ... removes one."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    content = {**json.loads((folder / "config.json").read_text()), **settings}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


@pytest.mark.parametrize("case", ["t5", "bart", "marian"])
def test_old_files_say_the_shared_embedding_again(case, tmp_path):
    theirs, given = saved(case, tmp_path), rows()
    expected = said(theirs, *given)
    prefix = "" if case == "t5" else "model."
    copies = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")] + ["lm_head.weight"]

    def old(weights):
        found = weights | {name: weights[f"{prefix}shared.weight"].clone() for name in copies}
        if case == "t5":
            name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
            found[name] = torch.ones(12, 4)
        if case == "marian":
            found["model.encoder.embed_positions.weight"] = torch.ones(38, 24)
        return found

    edited(tmp_path, old, scale_decoder_outputs=..., share_encoder_decoder_embeddings=..., decoder_vocab_size=...)
    assert (ours(load_folder(tmp_path).model, *given) - expected).abs().max() < TOLERANCE


def test_a_trunk_without_prefix_and_bias_is_read(tmp_path):
    theirs, given = saved("bart", tmp_path), rows()
    theirs.final_logits_bias.zero_()
    expected = said(theirs, *given)

    def bare(weights):
        return {n.removeprefix("model."): t for n, t in weights.items() if n != "final_logits_bias"}

    edited(tmp_path, bare, architectures=["BartModel"])
    loaded = load_folder(tmp_path)
    assert not loaded.config.head_bias
    assert (ours(loaded.model, *given) - expected).abs().max() < TOLERANCE


def test_the_first_version_of_gated_t5_is_told_by_its_config(tmp_path):
    """Files of T5 1.1 from before the library ties every head."""
    theirs, given = saved("t5-v1.1", tmp_path), rows()
    edited(tmp_path, tie_word_embeddings=False, scale_decoder_outputs=...)
    loaded = load_folder(tmp_path)
    assert not loaded.config.tied
    assert (ours(loaded.model, *given) - said(theirs, *given)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("t5", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel is not supported"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "is not supported"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("bart", {"normalize_before": True}, "normalize_before"),
        ("t5", {"feed_forward_proj": "gated-sinus"}, "gated-sinus"),
        ("t5", {"d_kv": 7}, "does not fit|is .* in the weights"),
        ("marian", {"decoder_start_token_id": 99}, "must be a token"),
    ],
)
def test_what_has_no_counterpart_is_refused(case, settings, message, tmp_path):
    saved(case, tmp_path)
    edited(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path)


def test_unknown_and_missing_tensors_are_refused(tmp_path):
    saved("t5", tmp_path)
    edited(tmp_path, lambda weights: weights | {"encoder.block.0.extra.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"does not know what to do with encoder.block.0.extra.weight"):
        load_folder(tmp_path)
    edited(tmp_path, lambda weights: {n: t for n, t in weights.items() if "extra" not in n and "layer.1.E" not in n})
    with pytest.raises(UserError, match=r"lacks .*EncDecAttention"):
        load_folder(tmp_path)


def test_a_model_that_no_family_can_say_is_refused(tmp_path):
    saved("t5", tmp_path / "t5")
    loaded = load_folder(tmp_path / "t5")
    changed = replace(loaded, config=loaded.config.but({"encoder.block.ffn.activation": "silu"}))
    with pytest.raises(UserError, match=r"nearest is t5, but encoder.layer 0.ffn.activation is silu"):
        save_folder(tmp_path / "out", changed)


@pytest.mark.parametrize(("name", "special"), [("bart", ENCODER_TOKENS), ("t5", T5_TOKENS)])
def test_a_model_trained_here_begins_to_write_there_where_it_does_here(name, special, tmp_path):
    tokenizer = Tokenizer.train(["The cat sat on the mat."] * 4, 300, special)
    config = MODELS[name].but({"vocab": tokenizer.size, "start": None, "first": None})
    save_folder(tmp_path, Loaded(config, rough(config), tokenizer))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert theirs.generation_config.decoder_start_token_id == tokenizer.decoder_start
    assert (theirs.config.pad_token_id, theirs.config.eos_token_id) == (tokenizer.pad, tokenizer.end)
    again = onefold.load(tmp_path)
    assert again.config.start == tokenizer.decoder_start
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("A cat").input_ids == again.ids("A cat")
