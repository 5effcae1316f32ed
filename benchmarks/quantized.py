"""Weights of fewer bits against bitsandbytes with PEFT: bytes of a weight, a training step and its memory; fp32, CPU.

    python benchmarks/quantized.py
    python benchmarks/quantized.py --rounds 9 --threads 1

A step is forward, loss, backward and update by torch's fused AdamW of adapters beside the same Llama. Both sides
dequantise a matrix whenever they multiply with it. Ratios above 1: Onefold is faster.
"""

from collections.abc import Callable

import bitsandbytes
import peft
import torch
from lora_step import CONTEXT, MODULES, RANK, ROWS, VOCAB, ours, stepper, theirs
from race import begin, parser, race
from torch import nn

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.core.batch import TokenBatch
from onefold.nn.linear import Linear
from onefold.nn.quantized import QuantizedLinear
from onefold.objectives.language import NextToken

SCHEMES = {
    "NF4, double": QuantizeConfig(),
    "NF4": QuantizeConfig(double=False),
    "FP4, double": QuantizeConfig(scheme="fp4"),
    "Int4, double": QuantizeConfig(scheme="int4"),
    "int8": QuantizeConfig(scheme="int8"),
}
SIZE = 2048


def table() -> None:
    """Bytes of a weight, measured on one matrix; and how far rounding goes for normal weights."""
    layer = Linear(SIZE, SIZE, bias=False)
    nn.init.normal_(layer.weight)
    print(f"{'':14}{'bytes a weight':>16}{'bits':>8}{'relative error':>18}")
    print(f"{'fp32':14}{4:16.4f}{32:8.3f}{0:18.4f}")
    for name, step in SCHEMES.items():
        stored = QuantizedLinear(layer, step.scheme, step.block, step.double)
        error = ((stored.dense() - layer.weight).norm() / layer.weight.norm()).item()
        each = stored.bytes / SIZE**2
        print(f"{name:14}{each:16.4f}{8 * each:8.3f}{error:18.4f}")
    their = bitsandbytes.functional
    codes, state = their.quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
    tensors = (codes, state.absmax, state.state2.absmax, state.offset, state.code, state.state2.code)
    each = sum(tensor.nbytes for tensor in tensors) / SIZE**2
    print(f"{'bitsandbytes':14}{each:16.4f}{8 * each:8.3f}   NF4, double; its tables, too, are kept with every matrix")


def our_loss() -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    model, objective = ours().build(), NextToken().build()
    QuantizeConfig().apply(model)
    LoRAConfig(rank=RANK).apply(model)
    weights = torch.ones(ROWS, CONTEXT - 1)

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        batch = TokenBatch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights)
        term = objective(model, batch, 0).terms["ce"]
        return term.sum / term.count

    return model, loss


def their_loss() -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    model = theirs()
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                shape = (child.in_features, child.out_features)
                four = bitsandbytes.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, quant_type="nf4")
                four.weight = bitsandbytes.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                setattr(module, name, four.to("cpu"))
    settings = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=MODULES, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    return adapted, lambda tokens: adapted(tokens, labels=tokens).loss


def memory(name: str, model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Megabytes of what the model is, and of what its forward pass leaves for the one back."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            inner = (state.absmax, state.state2.absmax, state.offset)
            held |= {id(tensor): tensor for tensor in inner}
    own = {tensor.untyped_storage().data_ptr() for tensor in held.values()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = loss(torch.randint(0, VOCAB, (ROWS, CONTEXT)))
    print(f"{name:28}{sum(t.nbytes for t in held.values()) / 1e6:>10.1f}{sum(kept.values()) / 1e6:>12.1f}")
    del found


def main() -> None:
    options = begin(parser(__doc__, rounds=9))
    table()
    sides = {"bitsandbytes and PEFT": their_loss(), "onefold": our_loss()}
    print(
        f"\nLoRA of rank {RANK} beside NF4, {ROWS} x {CONTEXT} tokens a step\n{'':28}{'weights':>10}{'kept':>12}   MB"
    )
    for name, side in sides.items():
        memory(name, *side)
    steppers = {name: stepper(*side, options.clock) for name, side in sides.items()}
    race(steppers, options.rounds, "bitsandbytes and PEFT")


if __name__ == "__main__":
    main()
