"""One training step against `transformers`: same shapes, same data, same optimizer (torch's fused AdamW), fp32.

    python benchmarks/train_step.py                 # both shapes, 1M and 7M parameters, eager and compiled
    python benchmarks/train_step.py --rounds 20 --threads 1

A step is forward, loss, backward, clipping and update. `transformers` runs as its users run it: the model's own loss,
SDPA attention. Ratios above 1 mean that Onefold is faster.
"""

from collections.abc import Callable

import torch
import transformers
from race import begin, parser, race
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from onefold.core.batch import TokenBatch
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.objectives.language import NextToken

VOCAB, CONTEXT, ROWS = 2048, 256, 16
SHAPES = {"1M": dict(width=128, depth=4, heads=4), "7M": dict(width=320, depth=5, heads=5)}


def ours(family: str, width: int, depth: int, heads: int) -> DecoderConfig:
    common = {"vocab": VOCAB, "context": CONTEXT, "width": width, "depth": depth, "block.mixer.heads": heads}
    if family == "gpt2":
        return families.gpt2().but({**common, "block.ffn.width": 4 * width})
    return families.llama2().but({**common, "block.ffn.width": 8 * width // 3, "tied": True})


def theirs(family: str, width: int, depth: int, heads: int) -> torch.nn.Module:
    if family == "gpt2":
        shape = dict(n_embd=width, n_layer=depth, n_head=heads, n_positions=CONTEXT)
        config = GPT2Config(vocab_size=VOCAB, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **shape)
        return GPT2LMHeadModel(config)
    shape = dict(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=8 * width // 3
    )
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **shape)
    )


def stepper(model: torch.nn.Module, loss, steps: int, clock: Callable[[], float]):
    """A function that takes `steps` optimizer steps and returns the seconds of one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        began = clock()
        for _ in range(steps):
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return (clock() - began) / steps

    run()  # warm-up: allocations, compilation
    return run


def contenders(family: str, shape: dict, steps: int, clock: Callable[[], float]) -> dict:
    """transformers, ours and ours compiled, as functions that return seconds a step."""
    tokens = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1))
    batch = TokenBatch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=torch.ones(ROWS, CONTEXT))
    found = {}
    reference = theirs(family, **shape)
    # Its loss shifts inside: the last token has no target, which leaves one position in 256 out.
    found["transformers"] = stepper(reference, lambda: reference(batch.tokens, labels=batch.tokens).loss, steps, clock)
    for name, compiled in (("onefold", False), ("onefold, compiled", True)):
        model = ours(family, **shape).build()
        objective = NextToken().build()
        objective = torch.compile(objective) if compiled else objective

        def loss(model=model, objective=objective):
            term = objective(model, batch, 0).terms["ce"]
            return term.sum / term.count

        found[name] = stepper(model, loss, steps, clock)
    return found


def main() -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--steps", type=int, default=4, help="optimizer steps a round")
    options = begin(made)
    transformers.logging.set_verbosity_error()
    for shape in SHAPES.values():
        for family in ("gpt2", "llama"):
            config = ours(family, **shape)
            print(f"\n{family}-shaped, {count_parameters(config):,} parameters, {ROWS} x {CONTEXT} tokens a step")
            race(contenders(family, shape, options.steps, options.clock), options.rounds, "transformers")


if __name__ == "__main__":
    main()
