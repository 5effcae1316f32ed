"""PEFT judges: outputs of its adapters, its merged weights, and its folders, read and written."""

import json

import pytest
import torch

from onefold.adapt.lora import LoRAConfig
from onefold.core.errors import UserError
from onefold.interop.open import open_model
from onefold.interop.save import save

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
IDS = torch.arange(12).view(2, 6) * 3 + 1
LORA = {
    "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 3, "lora_alpha": 12},
    "rslora": {"target_modules": "all-linear", "use_rslora": True, "r": 4, "alpha_pattern": {"up_proj": 5}},
    "dora": {"target_modules": ["k_proj", "o_proj", "gate_proj"], "use_dora": True, "rank_pattern": {"o_proj": 2}},
}


def llama(**changes):
    torch.manual_seed(1)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | heads | changes)).eval()


def gpt2():
    torch.manual_seed(1)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(vocab_size=50, **shape, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def adapted(model, folder, **settings):
    """PEFT's model of random adapters beside `model`, and where it was written; its base lies beside it."""
    torch.manual_seed(0)
    model.save_pretrained(folder / "base")
    model.config.name_or_path = model.name_or_path = str(folder / "base")
    theirs = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data * 1.3 if "magnitude" in name else torch.randn_like(parameter) / 4
    theirs.save_pretrained(folder / "peft")
    return theirs


def logits(model):
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("kind", LORA)
def test_adapters_of_llama_both_ways(tmp_path, kind):
    theirs = adapted(llama(), tmp_path, **LORA[kind])
    ours = open_model(tmp_path / "peft")
    torch.testing.assert_close(logits(ours.model), logits(theirs), atol=2e-6, rtol=1e-5)

    save(ours, tmp_path / "again", "peft")
    again = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), tmp_path / "again").eval()
    torch.testing.assert_close(logits(again), logits(theirs), atol=2e-6, rtol=1e-5)

    merged = theirs.merge_and_unload()
    save(ours, tmp_path / "merged", "hf")
    published = llama_at(tmp_path / "merged").state_dict()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(published[name], weight, atol=1e-6, rtol=1e-5)


def llama_at(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_an_adapter_over_a_packed_matrix(tmp_path):
    """GPT-2's queries, keys and values have one adapter there; where ours has three, their ranks add up."""
    theirs = adapted(gpt2(), tmp_path, target_modules=["c_attn", "c_proj"], r=3, fan_in_fan_out=True, use_dora=True)
    ours = open_model(tmp_path / "peft")
    torch.testing.assert_close(logits(ours.model), logits(theirs), atol=2e-6, rtol=1e-5)

    own = open_model(tmp_path / "base")
    LoRAConfig(rank=2, targets=("mixer.q", "mixer.v"), ranks={"v": 3}).apply(own.model)
    for name, parameter in own.model.named_parameters():
        if ".adapters." in name:
            parameter.data.normal_()
    save(own, tmp_path / "written", "peft")
    assert json.loads((tmp_path / "written" / "adapter_config.json").read_text())["r"] == 5
    again = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), tmp_path / "written").eval()
    torch.testing.assert_close(logits(again), logits(own.model), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("base", [llama, gpt2])
def test_vectors_before_the_text_both_ways(tmp_path, kind, base):
    model = base()
    model.save_pretrained(tmp_path / "base")
    model.config.name_or_path = model.name_or_path = str(tmp_path / "base")
    settings = getattr(peft, kind)(num_virtual_tokens=5, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, settings).eval()
    for parameter in theirs.prompt_encoder.parameters():
        parameter.data.normal_()
    theirs.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        wanted = theirs(IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    ours = open_model(tmp_path / "peft")
    torch.testing.assert_close(logits(ours.model), wanted, atol=2e-5, rtol=1e-4)

    save(ours, tmp_path / "again", "peft")
    again = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), tmp_path / "again").eval()
    with torch.no_grad():
        found = again(IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    with pytest.raises(UserError, match="cannot be merged"):
        save(ours, tmp_path / "merged", "hf")


WHOLE = {
    "a norm and a head": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "lm_head"]}),
    "an embedding": (llama, {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}),
    "biases": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_was_trained_in_full(tmp_path, kind):
    base, settings = WHOLE[kind]
    theirs = adapted(base(), tmp_path, r=2, **settings)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 4
    theirs.save_pretrained(tmp_path / "peft")
    ours = open_model(tmp_path / "peft")
    torch.testing.assert_close(logits(ours.model), logits(theirs), atol=2e-6, rtol=1e-5)
    save(ours, tmp_path / "merged", "hf")
    torch.testing.assert_close(logits(llama_at(tmp_path / "merged")), logits(theirs), atol=2e-6, rtol=1e-5)
    with pytest.raises(UserError, match="in full beside its adapter: open it by itself"):
        open_model(tmp_path / "base", adapters={"a": tmp_path / "peft"})
    if kind == "an embedding":
        llama(vocab_size=60).save_pretrained(tmp_path / "base")
        with pytest.raises(UserError, match=r"embed_tokens\.weight is \[50, 16\], this one has \[60, 16\]"):
            open_model(tmp_path / "peft")


def test_several_adapters_on_one_model(tmp_path):
    theirs = {kind: adapted(llama(), tmp_path / kind, **LORA[kind]) for kind in ("lora", "dora")}
    found = open_model(tmp_path / "lora" / "base", adapters={kind: tmp_path / kind / "peft" for kind in theirs})
    plain_model = open_model(tmp_path / "lora" / "base").model
    assert found.model.switch.active == "lora"
    for kind, model in theirs.items():
        found.model.switch.use(kind)
        torch.testing.assert_close(logits(found.model), logits(model), atol=2e-6, rtol=1e-5)
    found.model.switch.use(None)
    assert torch.equal(logits(found.model), logits(plain_model))
    with pytest.raises(UserError, match="no adapter named 'poet'; there are lora, dora"):
        found.model.switch.use("poet")
    for name in ("poet-v1.5", "type", ""):
        with pytest.raises(UserError, match="an adapter cannot be called"):
            found.model.switch.add(name)


def test_what_does_not_fit_is_named(tmp_path):
    adapted(llama(), tmp_path, **LORA["lora"])
    llama(head_dim=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(
        UserError, match=r"adapts another model: .*layers\.0\.self_attn\.q_proj\.lora_B\.weight is \[16, 3\]"
    ):
        open_model(tmp_path / "wide", adapters={"a": tmp_path / "peft"})
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"this one has no matrix model\.layers\.0\.mlp\.down_proj"):
        open_model(tmp_path / "gpt2", adapters={"a": tmp_path / "peft"})
    file = tmp_path / "peft" / "adapter_config.json"
    told = json.loads(file.read_text())
    refused = (
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4 changes the base, too"),
        ({"alpha_pattern": {r"(a+)+\.q_proj": 9}}, "is a regular expression"),
        ({"base_model_name_or_path": str(tmp_path / "peft")}, "names itself as the model that it adapts"),
    )
    for change, error in refused:
        file.write_text(json.dumps(told | change))
        with pytest.raises(UserError, match=error):
            open_model(tmp_path / "peft")
    file.write_text(json.dumps(told | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        open_model(tmp_path / "peft")
