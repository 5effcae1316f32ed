"""A layer of experts, forward and backward, against transformers' Mixtral block: same weights, same tokens, fp32.

    python benchmarks/experts.py
    python benchmarks/experts.py --experts 8 64 --tokens 4096 --rounds 5

Each token sees two experts, so arithmetic is the same whatever their number. Theirs runs in both ways that it has: a
loop over experts ("eager") and grouped matrix products. Ratios above 1: Onefold is faster. What bounds all of them is
the time of the plain products of as many rows, which is shown last.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from race import machine, race
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.sparse.experts import Experts, ExpertsConfig

WIDTH, INNER, K = 256, 512, 2


def ours(experts: int) -> Experts:
    return ExpertsConfig(experts=experts, expert=GatedMLPConfig(width=INNER)).build(WIDTH)


@torch.no_grad()
def theirs(like: Experts, way: str) -> nn.Module:
    count = len(like.router.weight)
    config = MixtralConfig(hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=count, num_experts_per_tok=K)
    config._experts_implementation = way
    block = MixtralSparseMoeBlock(config).train()
    block.gate.weight.copy_(like.router.weight)
    block.experts.gate_up_proj.copy_(like.experts.gate_up.weight)
    block.experts.down_proj.copy_(like.experts.out.weight)
    return block


def stepper(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], float]:
    def run() -> float:
        layer.zero_grad()
        began = time.perf_counter()
        layer(x).backward(gradient)
        return time.perf_counter() - began

    return run


def products(tokens: int) -> Callable[[], float]:
    """The six products that nobody can do without, as if all tokens had one expert."""
    rows = torch.randn(K * tokens, WIDTH), torch.randn(K * tokens, INNER), torch.randn(K * tokens, 2 * INNER)
    up, down = torch.randn(2 * INNER, WIDTH), torch.randn(WIDTH, INNER)

    def run() -> float:
        x, h, both = rows
        began = time.perf_counter()
        x @ up.T, both @ up, both.T @ x
        h @ down.T, x @ down, x.T @ h
        return time.perf_counter() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; {options.tokens} tokens, width {WIDTH}, {K} experts of {INNER} a token")
    times: dict[int, list[float]] = {}
    for experts in options.experts:
        torch.manual_seed(0)
        layer = ours(experts)
        x = torch.randn(8, options.tokens // 8, WIDTH, requires_grad=True)
        gradient = torch.randn_like(x)
        others = {way: theirs(layer, way) for way in ("eager", "grouped_mm")}
        for block in others.values():
            torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-4)
        print(f"\n{experts} experts")
        own, times[experts] = stepper(layer, x, gradient), []

        def timed(own=own, times=times[experts]) -> float:
            times.append(own())
            return times[-1]

        contenders = {f"transformers, {way}": stepper(block, x, gradient) for way, block in others.items()}
        contenders |= {"onefold": timed, "plain products": products(options.tokens)}
        for run in contenders.values():
            run()
        ratios = race(contenders, options.rounds, "transformers, grouped_mm")
        loop = ratios["onefold"] / ratios["transformers, eager"]
        print(f"{'':28}onefold against the loop over experts: {loop:.2f}")
    medians = [statistics.median(t) for t in times.values()]
    print(f"\nonefold, slowest number of experts against the fastest: {max(medians) / min(medians):.2f}")


if __name__ == "__main__":
    main()
