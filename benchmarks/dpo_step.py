"""A training step of DPO against TRL's DPOTrainer with its reference's log-probabilities computed beforehand.

    python benchmarks/dpo_step.py                 # a Llama of 3M parameters, prompts longer and shorter than answers
    python benchmarks/dpo_step.py --rounds 20 --threads 1 --clock cpu      # on a busy machine

A step is loss, backward, clipping and update by torch's fused AdamW, fp32, batches of 8 pairs, no reference in memory
on either side. Both read the same file with the same tokenizer and have the same weights; their losses and gradients on
a batch are compared first. TRL runs as its users run it (its trainer's collator, sampler and compute_loss, SDPA
attention); Onefold once on TRL's batches, and once on its own, which hold pairs of like lengths. Ratios above 1 mean
that Onefold is faster.
"""

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from race import begin, parser, race
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from train_step import stepper
from trl import DPOConfig, DPOTrainer

from onefold.core.batch import PreferenceBatch
from onefold.data.text.chat.preferences import PreferenceData
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.loaded import Loaded
from onefold.interop.save import save
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.objectives.preference import Preference

VOCAB, PAIRS, ROWS = 4096, 64, 8
LENGTHS = {"prompts of about 30 tokens, answers of 90": (30, 90), "prompts of about 90 tokens, answers of 60": (90, 60)}


def config():
    shape = {"vocab": VOCAB, "width": 192, "depth": 3, "context": 512}
    return families.llama2().but({**shape, "block.mixer.heads": 3, "block.mixer.kv_heads": 3, "block.ffn.width": 512})


def table(folder: Path, lengths: tuple[int, int]) -> Path:
    """Pairs of answers of made-up words, as long as those of chats relative to each other."""
    generator = np.random.default_rng(0)

    def words(mean: int) -> str:
        count = int(np.clip(mean * generator.lognormal(-0.18, 0.6), 2, 3 * mean))
        return " ".join(f"w{i}" for i in generator.integers(0, VOCAB - 2, count))

    rows = [
        {"prompt": words(lengths[0]), **{k: f" {words(lengths[1])}" for k in ("chosen", "rejected")}}
        for _ in range(PAIRS)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def word_tokenizer(folder: Path) -> Path:
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"w{i}": i + 2 for i in range(VOCAB - 2)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    theirs.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def as_batch(inputs: dict) -> PreferenceBatch:
    """A batch of TRL's: the chosen answers, then the rejected ones."""
    mask, tokens = inputs["completion_mask"], inputs["input_ids"]
    counts, width = mask.sum(1), int(mask.sum(1).max())
    inside = torch.arange(width) < counts[:, None]
    places = torch.zeros(len(tokens), width, dtype=torch.long)
    places[inside] = mask.nonzero()[:, 1] - 1
    targets = tokens.gather(1, places + 1) * inside
    pair = lambda t: torch.stack(t.chunk(2), 1)  # noqa: E731
    return PreferenceBatch(
        tokens=pair(tokens),
        lengths=pair(inputs["attention_mask"].sum(1)),
        places=pair(places),
        targets=pair(targets),
        weights=pair(inside.float()),
        reference=torch.stack((inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]), 1).float(),
    )


def contenders(folder: Path, lengths: tuple[int, int], steps: int, clock: Callable[[], float]) -> dict:
    """All, as functions that return seconds a step, once they agree."""
    file, tokens = table(folder, lengths), word_tokenizer(folder)
    ours = [config().build() for _ in range(2)]
    ours[1].load_state_dict(ours[0].state_dict())
    save(Loaded(ours[0].config, ours[0], None), folder / "hf", "hf")
    settings = DPOConfig(
        **{"output_dir": str(folder / "trl"), "precompute_ref_log_probs": True, "report_to": [], "use_cpu": True},
        **{"per_device_train_batch_size": ROWS, "max_length": 512, "bf16": False, "gradient_checkpointing": False},
    )
    trainer = DPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(folder / "hf"),
        args=settings,
        train_dataset=datasets.load_dataset("json", data_files=str(file), split="train"),
        processing_class=transformers.AutoTokenizer.from_pretrained(tokens),
    )
    theirs, objective = trainer.model.train(), Preference().build()
    given = list(trainer.get_train_dataloader())

    data = PreferenceData(path=str(file), context=512, held_out=0.0).prepare(folder / "data", Tokenizer.load(tokens))
    data.ask("start", lambda batch: objective.refer(ours[0], batch).detach(), ROWS)
    own = data.loader("train", ROWS, 0)
    loss = lambda model, batch: (t := objective(model, batch, 0).terms["dpo"]).sum / t.count  # noqa: E731

    norms = []
    for model, found in (
        (theirs, trainer.compute_loss(theirs, given[0])),
        (ours[0], loss(ours[0], as_batch(given[0]))),
    ):
        found.backward()
        norms.append((found.item(), torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()))
        model.zero_grad()
    assert np.allclose(*norms, rtol=1e-3), f"loss and gradient differ: {norms}"
    turns = [itertools.cycle(given) for _ in range(2)]
    return {
        "trl": stepper(theirs, lambda: trainer.compute_loss(theirs, next(turns[0])), steps, clock),
        "onefold, trl's batches": stepper(ours[0], lambda: loss(ours[0], as_batch(next(turns[1]))), steps, clock),
        "onefold": stepper(ours[1], lambda: loss(ours[1], next(own)), steps, clock),
    }


def main() -> None:
    made = parser(__doc__, rounds=7)
    made.add_argument("--steps", type=int, default=PAIRS // ROWS, help="optimizer steps a round")
    options = begin(made)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for name, lengths in LENGTHS.items():
        print(f"\nLlama-shaped, {count_parameters(config()):,} parameters, {ROWS} pairs: {name}")
        with tempfile.TemporaryDirectory() as folder:
            race(contenders(Path(folder), lengths, options.steps, options.clock), options.rounds, "trl")


if __name__ == "__main__":
    main()
