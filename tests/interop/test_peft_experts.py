"""PEFT judges adapters of experts: of the tensors that transformers keeps now, and of a file for each expert."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from onefold.adapt.lora import LoRAConfig
from onefold.core.errors import UserError
from onefold.interop.open import open_model
from onefold.interop.save import save

from .test_peft import IDS, adapted, llama_at, logits

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def mixtral():
    torch.manual_seed(1)
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape, **heads, num_local_experts=3)).eval()


def switch():
    torch.manual_seed(1)
    shape = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 24, "num_layers": 2}
    shape |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 3, "expert_capacity": 64}
    config = transformers.SwitchTransformersConfig(**shape, num_decoder_layers=2, decoder_start_token_id=0)
    return transformers.SwitchTransformersForConditionalGeneration(config).eval()


KINDS = {
    "both and attention": {
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "r": 3,
        "rank_pattern": {"mlp.experts.down_proj": 2},
        "alpha_pattern": {"gate_up_proj": 5},
    },
    "one of them, rsLoRA": {"target_modules": [], "target_parameters": ["down_proj"], "r": 4, "use_rslora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_experts_both_ways(tmp_path, kind):
    theirs = adapted(mixtral(), tmp_path, **KINDS[kind])
    ours = open_model(tmp_path / "peft")
    torch.testing.assert_close(logits(ours.model), logits(theirs), atol=5e-6, rtol=1e-4)

    save(ours, tmp_path / "again", "peft")
    again = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), tmp_path / "again").eval()
    torch.testing.assert_close(logits(again), logits(theirs), atol=5e-6, rtol=1e-4)

    merged = theirs.merge_and_unload()
    save(ours, tmp_path / "merged", "hf")
    published = llama_at(tmp_path / "merged").state_dict()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(published[name], weight, atol=1e-6, rtol=1e-5)


def test_adapters_of_gate_and_up_become_one(tmp_path):
    """And layers may have other ones."""
    mixtral().save_pretrained(tmp_path / "base")
    ours = open_model(tmp_path / "base")
    targets = ("blocks.0.ffn.experts.gate", "blocks.0.ffn.experts.up", "blocks.1.ffn.experts.up", "experts.out")
    LoRAConfig(rank=2, targets=targets, ranks={"up": 3}, alphas={"up": 5}).apply(ours.model)
    for name, parameter in ours.model.named_parameters():
        if ".adapters." in name:
            parameter.data.normal_(std=0.3)
    save(ours, tmp_path / "written", "peft")
    theirs = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), tmp_path / "written").eval()
    torch.testing.assert_close(logits(theirs), logits(ours.model), atol=5e-6, rtol=1e-4)

    ours = open_model(tmp_path / "base")
    LoRAConfig(rank=2, dora=True, targets=("experts.out",)).apply(ours.model)
    with pytest.raises(UserError, match=r"PEFT has no DoRA of .*experts\.down_proj"):
        save(ours, tmp_path / "dora", "peft")


def test_adapters_of_each_expert_and_of_routers(tmp_path):
    """As adapters of Mixtral once were, of which PEFT makes tensors when it reads them."""
    theirs = adapted(mixtral(), tmp_path, target_modules=["w1", "w2", "w3", "gate", "v_proj"], r=2, lora_alpha=6)
    torch.testing.assert_close(logits(open_model(tmp_path / "peft").model), logits(theirs), atol=5e-6, rtol=1e-4)
    now = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    old = {name: tensor for name, tensor in now.items() if ".mlp." not in name}
    for layer in range(2):
        new, former = (f"base_model.model.model.layers.{layer}.{of}" for of in ("mlp", "block_sparse_moe"))
        old |= {f"{former}.gate.lora_{ab}.weight": now[f"{new}.gate.lora_{ab}.weight"] for ab in "AB"}
        for e in range(3):
            for module, columns, rows in (("w1", slice(0, 2), slice(0, 24)), ("w3", slice(2, 4), slice(24, 48))):
                a = now[f"{new}.experts.base_layer.lora_A.weight"].view(3, 4, 16)[e, columns]
                b = now[f"{new}.experts.base_layer.lora_B.weight"].view(48, 4, 3)[rows, columns, e]
                old |= {f"{former}.experts.{e}.{module}.lora_{ab}.weight": t for ab, t in (("A", a), ("B", b))}
            a = now[f"{new}.experts.lora_A.weight"].view(3, 2, 24)[e]
            b = now[f"{new}.experts.lora_B.weight"].view(16, 2, 3)[..., e]
            old |= {f"{former}.experts.{e}.w2.lora_{ab}.weight": t for ab, t in (("A", a), ("B", b))}
    former = tmp_path / "former"
    former.mkdir()
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    modules = ["w1", "w2", "w3", "gate", "v_proj"]
    changes = {"target_modules": modules, "target_parameters": None, "rank_pattern": {}, "alpha_pattern": {}}
    (former / "adapter_config.json").write_text(json.dumps(told | changes))
    save_file({name: tensor.contiguous() for name, tensor in old.items()}, former / "adapter_model.safetensors")
    judge = peft.PeftModel.from_pretrained(llama_at(tmp_path / "base"), former).eval()
    ours = open_model(former)
    torch.testing.assert_close(logits(ours.model), logits(judge), atol=5e-6, rtol=1e-4)
    save(ours, tmp_path / "merged", "hf")
    torch.testing.assert_close(logits(llama_at(tmp_path / "merged")), logits(judge), atol=5e-6, rtol=1e-4)
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.router\.weight in full beside its adapter"):
        open_model(tmp_path / "base", adapters={"a": former})

    save_file(
        {n: t.contiguous() for n, t in old.items() if "experts.1.w2" not in n}, former / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"adapts 2 of the 3 experts of blocks\.0\.ffn\.experts\.out"):
        open_model(former)


def test_switch_has_a_linear_layer_for_each_expert(tmp_path):
    settings = {"target_modules": ["wi", "q"], "r": 2, "use_dora": True}
    theirs, source, target = adapted(switch(), tmp_path, **settings), IDS, IDS[:, :4]
    ours = open_model(tmp_path / "peft")
    save(ours, tmp_path / "again", "peft")
    base = transformers.SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    with torch.no_grad():
        wanted = theirs(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(ours.model(source, target), wanted, atol=5e-6, rtol=1e-4)
        found = again(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=1e-4)
