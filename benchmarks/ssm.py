"""S4D against attention: a layer forward and backward at growing length, and a step of writing at the end of a text.

    python benchmarks/ssm.py [lengths, 1024,4096,16384] [rounds, 5]

Both are whole mixers of the same block (projections included), width 128, 4 heads or 64 states a channel, causal,
batch 4, fp32. Attention is ours on torch's scaled_dot_product_attention.
"""

import sys
import time
from collections.abc import Callable

import torch
from race import machine, race
from torch import nn

from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.ssm import S4DConfig

WIDTH, BATCH, HEADS = 128, 4, 4
MIXERS = {"attention": AttentionConfig(heads=HEADS), "S4D": S4DConfig()}


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def training(mixer: nn.Module, length: int) -> Callable[[], float]:
    x = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    gradient = torch.randn_like(x)
    layout = Layout(torch.arange(length)[None])
    return lambda: seconds(lambda: mixer(x, layout).backward(gradient))


def writing(mixer: nn.Module, length: int) -> Callable[[], float]:
    """A token of each row, after so many."""
    state = mixer.init_state(BATCH, length + 1)
    x, token = torch.randn(BATCH, length, WIDTH), torch.randn(BATCH, 1, WIDTH)
    with torch.inference_mode():
        for start in range(0, length, 1024):
            part = x[:, start : start + 1024]
            mixer(part, Layout(torch.arange(start, start + part.shape[1])[None], start=start), state)
    layout = Layout(torch.tensor([[length]]), start=length)

    def step() -> float:
        with torch.inference_mode():
            return seconds(lambda: mixer(token, layout, state), 20)

    return step


def main() -> None:
    lengths = [int(n) for n in (sys.argv[1] if len(sys.argv) > 1 else "1024,4096,16384").split(",")]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.manual_seed(0)
    mixers = {name: config.build(WIDTH) for name, config in MIXERS.items()}
    print(machine())
    for length in lengths:
        print(f"\nforward and backward, {BATCH} rows of {length:,} tokens")
        contenders = {name: training(mixer, length) for name, mixer in mixers.items()}
        for warm in contenders.values():
            warm()
        race(contenders, max(2, min(rounds, 2**15 // length)), "attention")
    for length in lengths:
        print(f"\none token of each of {BATCH} rows, after {length:,}")
        race({name: writing(mixer, length) for name, mixer in mixers.items()}, rounds, "attention")


if __name__ == "__main__":
    main()
