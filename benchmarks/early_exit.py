"""A text written leaving the model early against the same model with all layers: tokens a second, layers a token, and
how many tokens are the same.

    python benchmarks/early_exit.py                                    # trains a small deep model first, in minutes
    python benchmarks/early_exit.py --model runs/mine --prompt 'def main(' --thresholds 0.9 0.5 calibrated

The small model learns the world of the check `adaptive` (recipes/efficient/_early_exit.py) in twelve wide layers, of
which its easy letters need one. One text at a time, greedily. Ratios above 1: faster than with all layers. Beside it, a
draft of the first layer (`--draft first:1`), which writes the very text of all layers.
"""

import tempfile
import time
from argparse import Namespace
from pathlib import Path

from race import begin, parser, race

import onefold
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.recipes.efficient import _early_exit


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--model", help="one that was trained with objective.kind=every_layer")
    made.add_argument("--prompt", default="DbcdeBfghi")
    made.add_argument("--thresholds", nargs="+", default=["0.9", "0.5", "0.2"], help="or calibrated")
    made.add_argument("--new", type=int, default=48, help="tokens to write")
    given = begin(made)
    if given.model is not None:
        contest(onefold.load(given.model), given)
        return
    with tempfile.TemporaryDirectory() as folder:
        shape = {"model.width": 256, "model.depth": 12, "model.block.ffn.width": 1024, "optimizer.lr": 2e-3}
        run = _early_exit.run(Path(folder), seed=0).but({**shape, "trainer.steps": 60})
        contest(onefold.load(onefold.train(run).out), given)


def contest(model: Model, given: Namespace) -> None:
    sampling = Sampling(max_new_tokens=given.new)
    texts: dict[str, list[int]] = {}
    layers: dict[str, float] = {}

    def write(how: str) -> float:
        """Seconds a token."""
        model.leave_early(None)
        model.speculate("first:1" if how == "a draft" else None)
        if how not in ("all layers", "a draft"):
            model.leave_early(how)
        row = model.begin(given.prompt, sampling)
        began = given.clock()
        model.finish([row], sampling)
        seconds = given.clock() - began
        texts[how] = row.ids
        if model.early_exit is not None:
            layers[how] = model.early_exit.mean_layers
        return seconds / max(1, len(row.ids))

    began = time.perf_counter()
    ways = ("all layers", *given.thresholds, "a draft")
    race({way: lambda way=way: write(way) for way in ways}, given.rounds, "all layers", digits=2)
    whole = texts["all layers"]
    for way in ways[1:]:
        same = sum(a == b for a, b in zip(texts[way], whole)) / max(1, len(whole))
        took = f", {layers[way]:.1f} of {len(model.network.blocks)} layers a token" if way in layers else ""
        print(f"  {way}: {same:.0%} of {len(whole)} tokens are the same{took}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
