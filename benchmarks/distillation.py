"""A step of knowledge distillation against TRL's GKDTrainer and a plain step with two models of transformers, fp32.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --rounds 20 --threads 1 --clock cpu       # on a busy machine

A student of 3M parameters learns a teacher's distribution of every token of 8 x 128: forward KL at temperature 1. A
step is both models' passes, loss, backward, clipping and update by torch's fused AdamW. TRL runs its own compute_loss
on given texts (lmbda=0, beta=0: forward KL); the plain step is F.kl_div of two log_softmaxes. All have the same
weights, and their losses and gradients are compared first. Ratios above 1: Onefold is faster.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from race import begin, parser, race
from tokenizers import Tokenizer as Backend
from tokenizers import models
from torch import nn
from train_step import stepper
from trl.experimental.gkd import GKDConfig, GKDTrainer

from onefold.core.batch import TokenBatch
from onefold.interop.loaded import Loaded
from onefold.interop.save import save
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.objectives.distillation import Distillation

VOCAB, ROWS, CONTEXT = 8192, 8, 128


def config(width: int, depth: int, heads: int) -> DecoderConfig:
    shape = {"vocab": VOCAB, "width": width, "depth": depth, "context": CONTEXT}
    ffn = {"block.ffn.width": 8 * width // 3 // 32 * 32}
    return families.llama2("7b").but({**shape, **ffn, "block.mixer.heads": heads, "tied": True})


STUDENT, TEACHER = config(192, 3, 3), config(384, 6, 6)


def gkd(student: nn.Module, teacher: nn.Module, folder: Path) -> Callable[[nn.Module, dict], torch.Tensor]:
    """TRL's loss of a batch."""
    backend = Backend(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w1")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = GKDConfig(
        **{"output_dir": str(folder), "lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "report_to": [], "use_cpu": True},
        **{"bf16": False, "gradient_checkpointing": False},
    )
    said = [{"role": "user", "content": "w2"}, {"role": "assistant", "content": "w3"}]
    rows = Dataset.from_list([{"messages": said}])
    return GKDTrainer(student, teacher, args=settings, train_dataset=rows, processing_class=tokenizer).compute_loss


def contenders(folder: Path, steps: int, clock: Callable[[], float]) -> dict[str, Callable[[], float]]:
    """All, as functions that return seconds a step, once they agree."""
    ours, our_teacher = STUDENT.build(), TEACHER.build().requires_grad_(False)
    for parameter in our_teacher.parameters():  # a teacher that is sure of something
        parameter.mul_(3)
    for name, model in (("student", ours), ("teacher", our_teacher)):
        save(Loaded(model.config, model, None), folder / name, "hf")
    read = transformers.AutoModelForCausalLM.from_pretrained
    theirs, plain = (read(folder / "student", dtype=torch.float32).train() for _ in range(2))
    teacher = read(folder / "teacher", dtype=torch.float32).eval()

    tokens = torch.randint(2, VOCAB, (ROWS, CONTEXT + 1))
    batch = TokenBatch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=torch.ones(ROWS, CONTEXT))
    objective = Distillation().build({"teacher": our_teacher})
    # TRL reads a token more, and leaves out what is said of the one behind it.
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    trl_loss = gkd(theirs, teacher, folder / "trl")

    def our_loss() -> torch.Tensor:
        term = objective(ours, batch, 0).terms["distillation"]
        return term.sum / term.count

    def plain_loss() -> torch.Tensor:
        with torch.no_grad():
            said = teacher(batch.tokens).logits.log_softmax(-1)
        each = F.kl_div(plain(batch.tokens).logits.log_softmax(-1), said, reduction="none", log_target=True)
        return each.sum(-1).mean()

    sides = {
        "trl": (theirs, lambda: trl_loss(theirs, inputs)),
        "two models": (plain, plain_loss),
        "onefold": (ours, our_loss),
    }
    found = []
    for model, loss in sides.values():
        (value := loss()).backward()
        found.append((value.item(), torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()))
        model.zero_grad()
    print("loss, gradient's norm:", ", ".join(f"{name} {a:.5f} {b:.5f}" for name, (a, b) in zip(sides, found)))
    assert np.allclose(found[0], found[2], rtol=1e-3), "losses or gradients differ"
    assert np.allclose(found[1], found[2], rtol=1e-3), "losses or gradients differ"
    return {name: stepper(model, loss, steps, clock) for name, (model, loss) in sides.items()}


def main() -> None:
    made = parser(__doc__, rounds=7)
    made.add_argument("--steps", type=int, default=2, help="optimizer steps a round")
    options = begin(made)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = (count_parameters(config) for config in (STUDENT, TEACHER))
    print("student {:,} parameters, teacher {:,}, {} x {} tokens a step".format(*sizes, ROWS, CONTEXT))
    with tempfile.TemporaryDirectory() as folder:
        race(contenders(Path(folder), options.steps, options.clock), options.rounds, "trl")


if __name__ == "__main__":
    main()
