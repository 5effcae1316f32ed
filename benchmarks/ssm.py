"""S4D against attention: a layer forward and backward at growing length, and a step of writing at the end of a text.

    python benchmarks/ssm.py --threads 1 --clock cpu

Both are whole mixers of the same block (projections included), width 128, 4 heads or 64 states a channel, causal,
batch 4, fp32. Attention is ours on torch's scaled_dot_product_attention.
"""

from collections.abc import Callable

import torch
from race import begin, parser, race
from torch import nn

from onefold.nn.attention import AttentionConfig, Layout
from onefold.nn.states.ssm import S4DConfig

WIDTH, BATCH, HEADS = 128, 4, 4
MIXERS = {"attention": AttentionConfig(heads=HEADS), "S4D": S4DConfig()}
STEPS = 50  # of writing that are timed at once


def training(mixer: nn.Module, length: int, clock: Callable[[], float]) -> Callable[[], float]:
    x = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    gradient = torch.randn_like(x)
    layout = Layout(torch.arange(length)[None])

    def step() -> float:
        start = clock()
        mixer(x, layout).backward(gradient)
        return clock() - start

    return step


def writing(mixer: nn.Module, length: int, clock: Callable[[], float]) -> Callable[[], float]:
    """A token of each row, after so many."""
    mixer.eval()
    state = mixer.init_state(BATCH, length + 1)
    x, token = torch.randn(BATCH, length, WIDTH), torch.randn(BATCH, 1, WIDTH)
    layout = Layout(torch.tensor([[length]]), start=length)
    with torch.inference_mode():
        for start in range(0, length, 1024):
            part = x[:, start : start + 1024]
            mixer(part, Layout(torch.arange(start, start + part.shape[1])[None], start=start), state)

    @torch.inference_mode()
    def step() -> float:
        mixer(token, layout, state)
        start = clock()
        for _ in range(STEPS):
            mixer(token, layout, state)
        return (clock() - start) / STEPS

    return step


def main() -> None:
    made = parser(__doc__, rounds=5, threads=1)
    made.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    made.add_argument("--only", choices=("training", "writing"))
    options = begin(made)
    mixers = {name: config.build(WIDTH) for name, config in MIXERS.items()}
    for length in options.lengths if options.only != "writing" else ():
        print(f"\nforward and backward, {BATCH} rows of {length:,} tokens")
        contenders = {name: training(mixer, length, options.clock) for name, mixer in mixers.items()}
        for warm in contenders.values():
            warm()
        race(contenders, max(2, min(options.rounds, 2**15 // length)), "attention")
    for length in options.lengths if options.only != "training" else ():
        print(f"\none token of each of {BATCH} rows, after {length:,}")
        contenders = {name: writing(mixer, length, options.clock) for name, mixer in mixers.items()}
        race(contenders, options.rounds, "attention", digits=2)


if __name__ == "__main__":
    main()
