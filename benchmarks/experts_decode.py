"""Writing with a mixture of experts, a token at a time, against dense models: fp32, greedy.

    python benchmarks/experts_decode.py --threads 1
    python benchmarks/experts_decode.py --threads 1 --clock cpu --rounds 9 --batches 1

The mixture has eight experts in each of eight layers of 512 channels, and a token sees two. Its dense twin has as many
parameters as a token of the mixture sees. The large one has five times these: DeepSpeed-MoE (arXiv 2201.05596, section
3) finds a mixture, of 128 experts, as good as a dense model of five times its size, which is not measured here.
Ratios above 1: faster than the twin. A step is a call of 40 tokens after a prompt of 8, divided by 40.
"""

from collections.abc import Callable

import torch
from race import begin, parser, race
from torch import nn

from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.engine import generate
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling
from onefold.models import families
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.sparse.experts import ExpertsConfig

VOCAB, DEPTH, PROMPT, NEW = 8192, 8, 8, 40
WIDTH, INNER, LARGE, HEADS = 512, 1408, 1152, 8  # 1152² is five times 512²


def model(ffn: GatedMLPConfig | ExpertsConfig, width: int = WIDTH) -> nn.Module:
    shape = {"vocab": VOCAB, "width": width, "depth": DEPTH, "context": 2048, "block.mixer.heads": HEADS}
    return families.llama2().but({**shape, "block.ffn": ffn.to_dict()}).build().eval().requires_grad_(False)


def sorted_by_expert(mixture: nn.Module) -> nn.Module:
    """The mixture without what is special about few tokens: its experts as they are trained."""
    twin = for_decoding(mixture)
    for block in twin.blocks:
        block.ffn = block.ffn.layer
    return twin


def writer(network: nn.Module, rows: int, clock: Callable[[], float]) -> Callable[[], float]:
    prompts = torch.randint(VOCAB, (rows, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()

    def run() -> float:
        texts = [Continuation(ids, NEW) for ids in prompts]
        began = clock()
        for _ in generate(network, texts, Sampling(temperature=0, max_new_tokens=NEW)):
            pass
        return (clock() - began) / NEW

    return run


def main() -> None:
    options = parser(__doc__, rounds=7)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 16])
    options = begin(options)
    mixture = model(ExpertsConfig(experts=8, expert=GatedMLPConfig(width=INNER // 2)))
    networks = {
        "dense twin": for_decoding(model(GatedMLPConfig(width=INNER))),
        "mixture": for_decoding(mixture),
        "mixture, sorted by expert": sorted_by_expert(mixture),
        "dense, five times as large": for_decoding(model(GatedMLPConfig(width=INNER * LARGE // WIDTH), LARGE)),
    }
    for name, network in networks.items():
        print(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    for rows in options.batches:
        print(f"\n{rows} texts" if rows > 1 else "\none text")
        contenders = {name: writer(network, rows, options.clock) for name, network in networks.items()}
        for run in contenders.values():
            run()
        race(contenders, options.rounds, "dense twin")


if __name__ == "__main__":
    main()
