"""A step of TRL's DPOTrainer on a small model: the same loss, rewards and gradients."""

import pytest
import torch

from onefold.core.batch import PreferenceBatch
from onefold.interop.loaded import Loaded
from onefold.interop.save import save
from onefold.models.families import llama2
from onefold.objectives.preference import DPO, IPO, Preference

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl")
WORDS = [f"w{i}" for i in range(62)]


def as_batch(inputs: dict) -> PreferenceBatch:
    """TRL's batch: the chosen answers, then the rejected ones."""
    mask, tokens = inputs["completion_mask"], inputs["input_ids"]
    inside = torch.arange(int(mask.sum(1).max())) < mask.sum(1, keepdim=True)
    places = torch.zeros(inside.shape, dtype=torch.long)
    places[inside] = mask.nonzero()[:, 1] - 1
    found = {
        "tokens": tokens,
        "lengths": inputs["attention_mask"].sum(1),
        "places": places,
        "targets": tokens.gather(1, places + 1) * inside,
        "weights": inside.float(),
    }
    said = torch.stack((inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]), 1).float()
    return PreferenceBatch(**{name: torch.stack(t.chunk(2), 1) for name, t in found.items()}, reference=said)


@pytest.mark.parametrize(("name", "loss"), [("sigmoid", DPO(beta=0.3)), ("ipo", IPO(beta=0.3))])
def test_trl_takes_the_same_step(tmp_path, name, loss):
    import datasets
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    shape = {"vocab": 64, "width": 32, "depth": 2, "context": 32, "block.ffn.width": 48}
    ours = llama2().but({**shape, "block.mixer.heads": 2, "block.mixer.kv_heads": 2}).build()
    save(Loaded(ours.config, ours, None), tmp_path / "hf", "hf")
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    rows = [
        {
            "prompt": " ".join(WORDS[i : i + 4]),
            "chosen": " " + " ".join(WORDS[i : 4 + 3 * i]),
            "rejected": " " + " ".join(WORDS[20 : 30 - i]),
        }
        for i in range(1, 5)
    ]
    trainer = trl.DPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"),
        args=trl.DPOConfig(
            **{"output_dir": str(tmp_path / "trl"), "precompute_ref_log_probs": True, "report_to": []},
            **{"use_cpu": True, "bf16": False, "beta": 0.3, "loss_type": [name], "disable_tqdm": True},
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="</s>", pad_token="</s>"
        ),
    )
    theirs = trainer.model.train()
    (inputs,) = trainer.get_train_dataloader()
    with torch.no_grad():  # the policy moves away from the reference
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "moved")
    from onefold.interop.open import open_model

    ours = open_model(tmp_path / "moved").model.requires_grad_(True)
    expected = trainer.compute_loss(theirs, inputs)
    expected.backward()
    found = Preference(loss=loss).build()(ours, as_batch(inputs), 0)
    term = found.terms[loss.kind]
    (term.sum / term.count).backward()
    torch.testing.assert_close(term.sum / term.count, expected.detach(), rtol=1e-4, atol=1e-6)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) for model in (theirs, ours)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-6)
    if name == "sigmoid":
        logged = trainer._metrics["train"]
        for metric, theirs_name in (("margin", "margins"), ("chosen", "chosen"), ("accuracy", "accuracies")):
            value = found.metrics[metric].sum / found.metrics[metric].count
            assert value.item() == pytest.approx(logged[f"rewards/{theirs_name}"][0], rel=1e-3, abs=1e-4)
