"""One training step of adapters against PEFT: same Llama, same adapters, same batches, fp32; and what decoding costs.

    python benchmarks/lora_step.py
    python benchmarks/lora_step.py --rounds 9 --threads 1

A step is forward, loss over the answer's tokens, backward and update by torch's fused AdamW of what trains. Decoding is
a token at a time, for one text: the adapter beside the weights, merged, or none. Ratios above 1: Onefold is faster.
"""

from collections.abc import Callable

import peft
import torch
from race import begin, parser, race
from transformers import LlamaConfig, LlamaForCausalLM

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.merge import merge_active
from onefold.core.batch import TokenBatch
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import generate
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling
from onefold.models import families
from onefold.models.transformer import DecoderConfig
from onefold.objectives.language import NextToken

ROWS, CONTEXT, RANK, LENGTH = 4, 256, 16, 48
VOCAB, WIDTH, DEPTH, HEADS, INNER = 4096, 384, 6, 6, 1024
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ours() -> DecoderConfig:
    shape = {"vocab": VOCAB, "width": WIDTH, "depth": DEPTH, "context": CONTEXT}
    return families.llama2("7b").but({**shape, "block.mixer.heads": HEADS, "block.ffn.width": INNER})


def theirs() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
        )
    )


def our_loss(dora: bool) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    model, objective = ours().build(), NextToken().build()
    LoRAConfig(rank=RANK, dora=dora).apply(model)
    weights = torch.ones(ROWS, CONTEXT - 1)

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        batch = TokenBatch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights)
        term = objective(model, batch, 0).terms["ce"]
        return term.sum / term.count

    return model, loss


def their_loss(dora: bool) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    settings = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=MODULES, use_dora=dora, task_type="CAUSAL_LM")
    model = peft.get_peft_model(theirs(), settings)
    return model, lambda tokens: model(tokens, labels=tokens).loss


def stepper(
    model: torch.nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], clock: Callable[[], float]
) -> Callable[[], float]:
    """A function that takes a step and returns its seconds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens = torch.randint(0, VOCAB, (ROWS, CONTEXT))

    def run() -> float:
        began = clock()
        loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        return clock() - began

    run()
    return run


def writer(dora: bool | None, clock: Callable[[], float], merged: bool = False) -> Callable[[], float]:
    """A function that writes LENGTH tokens and returns the seconds of one. dora None: without an adapter."""
    model = ours().build()
    if dora is not None:
        LoRAConfig(rank=RANK, dora=dora).apply(model)
    if merged:
        merge_active(model)
    fast = for_decoding(model.eval())

    def run() -> float:
        began = clock()
        for _ in generate(fast, [Continuation([1, 2, 3], LENGTH)], Sampling(temperature=0)):
            pass
        return (clock() - began) / LENGTH

    run()
    return run


def main() -> None:
    options = begin(parser(__doc__, rounds=9))
    for name, dora in (("LoRA", False), ("DoRA", True)):
        print(f"\n{name} of rank {RANK} beside all matrices of {DEPTH} blocks, {ROWS} x {CONTEXT} tokens a step")
        sides = {"PEFT": their_loss(dora), "onefold": our_loss(dora)}
        race({side: stepper(*made, options.clock) for side, made in sides.items()}, options.rounds, "PEFT")
    print("\na token written for one text")
    kinds = {"no adapter": None, "LoRA beside": False, "DoRA beside": True}
    writers = {name: writer(dora, options.clock) for name, dora in kinds.items()}
    writers["LoRA merged while it is at work"] = writer(False, options.clock, merged=True)
    race(writers, options.rounds, "no adapter")


if __name__ == "__main__":
    main()
