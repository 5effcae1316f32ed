"""Hugging Face folders: what transformers wrote we read, what we write transformers reads, with the same logits."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.huggingface import load_folder, save_folder
from onefold.interop.loaded import Loaded
from onefold.interop.tensors import write_safetensors
from tests.interop.published_models import CASES, LLAMA3_ROPE, published

TOLERANCE = 1e-4


@torch.no_grad()
def logits(model, tokens):
    said = model(tokens)
    return said if isinstance(said, torch.Tensor) else said.logits


def edit(folder, **changes):
    """Change keys of config.json; ... removes one."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_and_back(case, saved, tokens, tmp_path):
    folder, theirs = saved(case)
    expected = logits(theirs, tokens)
    assert expected.std() > 0.1  # a model that says nothing would agree with anything
    loaded = load_folder(folder)
    assert not loaded.model.training
    assert (logits(loaded.model, tokens) - expected).abs().max() < TOLERANCE

    save_folder(tmp_path / "ours", loaded)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(back) is type(theirs)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    assert (logits(back.eval(), tokens) - expected).abs().max() < 1e-5  # their config says the same


@pytest.mark.parametrize("case", ["llama3-rope", "llama-linear-rope", "neox", "gpt2", "qwen2-some-windows"])
def test_config_files_of_older_versions_mean_the_same(case, saved, tokens):
    folder, theirs = saved(case)
    rope = CASES[case][1].get("rope_parameters")
    old = {
        "torch_dtype": "float32",
        "dtype": ...,
        "rope_parameters": ...,
        "layer_types": ...,
        "transformers_version": "4.31",
    }
    if case.startswith("neox"):
        old |= {"rotary_emb_base": 10000, "rotary_pct": 0.25}
    elif rope:
        scaling = {("type" if name == "rope_type" else name): value for name, value in rope.items()}
        old |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    elif case.startswith("qwen"):
        old |= {"rope_theta": 10000.0}
    edit(folder, **old)
    assert (logits(load_folder(folder).model, tokens) - logits(theirs, tokens)).abs().max() < TOLERANCE


def test_shards_are_read_and_written(saved, tokens, tmp_path):
    folder, theirs = saved("llama", max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    expected = logits(theirs, tokens)
    assert (logits(load_folder(folder).model, tokens) - expected).abs().max() < TOLERANCE

    whole, _ = saved("llama")
    ours = tmp_path / "ours"
    ours.mkdir()
    write_safetensors(ours, load_file(whole / "model.safetensors"), shard_bytes=40_000)
    (ours / "config.json").write_text((whole / "config.json").read_text())
    assert len(list(ours.glob("model-*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(ours)
    assert torch.equal(logits(back, tokens), expected)

    next(iter(sorted(ours.glob("model-00002*")))).unlink()
    with pytest.raises(UserError, match=r"model-00002-of-.* is missing"):
        load_folder(ours)


def test_narrow_types_travel(tmp_path, tokens):
    theirs = published("llama").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "narrow")
    loaded = load_folder(tmp_path / "narrow")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype="float32")
    assert (logits(loaded.model, tokens) - logits(wide, tokens)).abs().max() < TOLERANCE
    assert load_folder(tmp_path / "narrow", dtype="auto").model.norm.weight.dtype == torch.bfloat16
    assert load_folder(tmp_path / "narrow", dtype="float16").model.norm.weight.dtype == torch.float16

    save_folder(tmp_path / "ours", loaded, dtype="bf16")
    assert json.loads((tmp_path / "ours/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "ours/model.safetensors").values()} == {torch.bfloat16}
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.dtype == torch.bfloat16
    with pytest.raises(UserError, match="no data type named int3"):
        load_folder(tmp_path / "narrow", dtype="int3")


def test_old_gpt2_files_without_prefix_and_with_masks(saved, tokens):
    folder, theirs = saved("gpt2")
    weights = load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    for i in range(3):
        old[f"h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40)
        old[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, folder / "model.safetensors")
    assert (logits(load_folder(folder).model, tokens) - logits(theirs, tokens)).abs().max() < TOLERANCE


@pytest.mark.parametrize("parts", [1, 2])
def test_old_files_with_pickled_tensors(parts, saved, tokens):
    folder, theirs = saved("neox")
    weights = load_file(folder / "model.safetensors")
    weights["embed_out.weight"] = weights.pop("lm_head.weight", weights.get("embed_out.weight"))
    weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(3)
    (folder / "model.safetensors").unlink()
    if parts == 1:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(weights)}
        for file in sorted(set(places.values())):
            torch.save({name: weights[name] for name in weights if places[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert (logits(load_folder(folder).model, tokens) - logits(theirs, tokens)).abs().max() < TOLERANCE


@pytest.fixture(scope="module")
def chat_tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer.train([__doc__ * 3, "def f(x): return x"], 290, special=("<|endoftext|>", "<|im_end|>")).backend
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
    )


def test_tokenizer_template_and_stops_travel(chat_tokenizer, tmp_path):
    theirs = published("llama", vocab_size=300)
    theirs.generation_config.eos_token_id = [1, 7]
    theirs.generation_config.temperature, theirs.generation_config.do_sample = 0.7, True
    theirs.save_pretrained(tmp_path / "theirs")
    chat_tokenizer.save_pretrained(tmp_path / "theirs")
    loaded = load_folder(tmp_path / "theirs")
    text = "Folders: what\n transformers wrote 123 ½🙂"
    assert loaded.tokenizer.encode(text) == chat_tokenizer(text, add_special_tokens=False).input_ids
    assert {1, 7} <= loaded.tokenizer.stops

    save_folder(tmp_path / "ours", loaded)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert back(text).input_ids == chat_tokenizer(text).input_ids
    assert (back.bos_token, back.eos_token) == ("<|endoftext|>", "<|im_end|>")
    messages = [{"role": "user", "content": "hi"}]
    assert back.apply_chat_template(messages, tokenize=False) == "user: hi<|im_end|>"
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert set(settings.eos_token_id) == loaded.tokenizer.stops
    assert settings.temperature == 0.7
    again = load_folder(tmp_path / "ours")
    assert again.tokenizer.digest == loaded.tokenizer.digest
    assert again.tokenizer.stops == loaded.tokenizer.stops


def test_a_tokenizer_larger_than_the_model_is_refused(chat_tokenizer, saved, tmp_path):
    folder, _ = saved("llama")  # 101 tokens
    chat_tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the model's vocabulary only 101"):
        load_folder(folder)
    (folder / "tokenizer.json").unlink()
    loaded = load_folder(folder)
    tokenizer = Tokenizer(chat_tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="do not belong together"):
        save_folder(tmp_path / "ours", Loaded(loaded.config, loaded.model, tokenizer))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mamba"},
            r"'mamba' is not supported; supported are llama, mistral, qwen2, qwen3, gpt2, gpt_neox",
        ),
        ({"model_type": ..., "architectures": ["MambaModel"]}, "'MambaModel' is not supported; supported are llama"),
        ({"rope_parameters": LLAMA3_ROPE | {"rope_type": "yarn"}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "llama3 lacks 'low_freq_factor'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu' is not supported; known: gelu"),
        ({"vocab_size": 102}, "the weights have a vocabulary of 101, the configuration one of 102"),
        ({"hidden_size": 54}, r"embed.token.weight is \[101, 48\] in the weights"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"num_hidden_layers": 2}, "does not know what to do with model.layers.2"),
        ({"num_key_value_heads": 3}, "model.layers.0.self_attn.q_proj.weight does not fit"),
        ({"num_key_value_heads": 4}, r"heads \(6\) must be a multiple of kv_heads \(4\)"),
        ({"num_attention_heads": "six"}, "num_attention_heads must be a positive whole number, not 'six'"),
        ({"rms_norm_eps": "small"}, "config.json"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn"),
    ],
)
def test_one_clear_line_for_what_cannot_be_loaded(changes, message, saved):
    folder, _ = saved("llama")
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as raised:
        load_folder(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_settings_that_nobody_understands_are_said(saved, capsys):
    folder, _ = saved("llama")
    edit(folder, residual_multiplier=0.5, some_flag=False)
    load_folder(folder)
    assert "settings not understood and left out: residual_multiplier" in capsys.readouterr().err


def test_damaged_weights_are_refused(saved, tmp_path):
    folder, _ = saved("llama")
    file = folder / "model.safetensors"
    good = file.read_bytes()
    for size in (0, 5, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(UserError, match="cut off or damaged"):
            load_folder(folder)
    file.write_bytes(good[:8] + b"\xff" + good[9:])
    with pytest.raises(UserError, match="cut off or damaged"):
        load_folder(folder)
    weights = {name: tensor.clone() for name, tensor in load_file_bytes(good).items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, file)
    with pytest.raises(UserError, match=r"blocks.1.ffn.gate_up.weight has numbers that are not finite"):
        load_folder(folder)
    file.unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_folder(folder)

    file.write_bytes(good)
    save_folder(tmp_path / "ours", load_folder(folder))
    ours = bytearray((tmp_path / "ours/model.safetensors").read_bytes())
    ours[-100] ^= 1  # one bit of one weight: our own exports carry checksums
    (tmp_path / "ours/model.safetensors").write_bytes(ours)
    with pytest.raises(UserError, match="damaged: its checksum"):
        load_folder(tmp_path / "ours")


def load_file_bytes(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


def test_an_export_that_fails_leaves_what_was_there(saved, tmp_path, monkeypatch):
    folder, _ = saved("llama")
    loaded = load_folder(folder)
    save_folder(tmp_path / "ours", loaded)
    before = (tmp_path / "ours/model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("onefold.interop.tensors.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_folder(tmp_path / "ours", loaded)
    assert (tmp_path / "ours/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_model_that_no_family_can_say_is_named():
    from onefold.models.families import llama2

    tiny = {"vocab": 50, "width": 16, "depth": 2, "block.mixer": {"heads": 2}, "block.ffn.width": 24}
    odd = llama2().but({**tiny, "block.ffn.activation": "relu_squared", "block.mixer.qk_norm": {"eps": 1e-5}})
    save = {"card": {}, "processor": None}
    with pytest.raises(UserError, match=r"nearest is \w+, but layer 0.residual is post, not pre"):
        save_folder("unused", Loaded(odd.but({"block.residual": "post"}), odd.build(), **save))
    with pytest.raises(UserError, match=r"causal is False"):
        save_folder("unused", Loaded(odd.but({"block.mixer.causal": False}), odd.build(), **save))
