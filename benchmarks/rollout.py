"""Writing the answers of a PPO phase against transformers' generate with its static cache: same weights, fp32, sampled.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --rounds 5 --threads 1 --clock cpu       # on a busy machine

64 prompts of 16 to 64 tokens are answered together at temperature 1. Answers end at one of the tokens that end a text,
half-way to the limit on average, as those of chats do; or all of them at the limit. Onefold is Policy.write, all of it:
rows read once, sampled with a generator of their own, spelt as they are written, and retired when they end. A number is
milliseconds of a token that an answer has; ratios above 1: Onefold is faster.
"""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from race import begin, parser, race
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.sampling import Sampling
from onefold.infer.rollouts.rollout import Policy, Prompt
from onefold.interop.loaded import Loaded
from onefold.interop.save import save
from onefold.models import families
from onefold.models.transformer import count_parameters

VOCAB, ROWS, LONGEST = 4096, 64, 128
SHAPE = {"vocab": VOCAB, "width": 384, "depth": 6, "context": 512, "block.mixer.heads": 6, "block.ffn.width": 1024}
STOPS = {"answers of different lengths": 2 * VOCAB // LONGEST, "answers that all reach the limit": 0}


def contenders(folder: Path, stops: int, clock: Callable[[], float]) -> dict[str, Callable[[], float]]:
    """Both, as functions that answer all prompts and return seconds a token."""
    model = families.llama2("7b").but(SHAPE).build().eval()  # small random weights: nearly any token is as likely
    save(Loaded(model.config, model, None), folder / "hf", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    backend = Backend(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = list(range(1, stops + 1))
    tokenizer = Tokenizer(backend, stops=ends)

    lengths = random.Random(0)
    texts = [torch.randint(VOCAB // 2, VOCAB, (lengths.randint(16, 64),)).tolist() for _ in range(ROWS)]
    policy = Policy(model, None, lambda answers: torch.zeros(len(answers)), torch.device("cpu"), rows=ROWS // 4)
    prompts = [Prompt(text, "", "") for text in texts]
    sampling, phase = Sampling(max_new_tokens=LONGEST, temperature=1.0), iter(range(10**6))

    def ours() -> float:
        number, began = next(phase), clock()
        rows = policy.write(prompts, sampling, 512, tokenizer, [(number, row) for row in range(ROWS)])
        return (clock() - began) / sum(len(row.ids) for row in rows)

    widest = max(len(text) for text in texts)
    padded = torch.tensor([[0] * (widest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (widest - len(text)) + [1] * len(text) for text in texts])
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": LONGEST, "pad_token_id": 0}
    settings |= {"cache_implementation": "static", "disable_compile": True, "eos_token_id": ends or None}

    def other() -> float:
        began = clock()
        out = theirs.generate(padded, attention_mask=mask, **settings)[:, widest:]
        seconds = clock() - began
        ended = ((out >= 1) & (out <= stops)).cumsum(1)
        return seconds / int((ended == 0).sum())

    return {"transformers": other, "onefold": ours}


def main() -> None:
    options = begin(parser(__doc__, rounds=5))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{count_parameters(families.llama2('7b').but(SHAPE)):,} parameters, {ROWS} prompts, up to {LONGEST} tokens")
    for name, stops in STOPS.items():
        print(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            race(contenders(Path(folder), stops, options.clock), options.rounds, "transformers", digits=3)


if __name__ == "__main__":
    main()
