"""Beam search of an encoder-decoder against transformers' generate: same weights, fp32, one thread, four beams.

    python benchmarks/beam.py                       # the shape of Marian's base models, 16 sources
    python benchmarks/beam.py --family t5 --batches 1 8 16 --rounds 7 --new 48

Sources have 8 to 48 tokens and are padded. Weights are random, so nothing ends a text: every contender writes as many
tokens as it is asked for. A step is the whole call, reading the sources included, divided by the number of tokens of a
text. How many texts are the same for both is printed first.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from race import machine, race

from onefold.infer.generation.sampling import Sampling
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.interop.loaded import Loaded
from onefold.models import seq2seq_families as families

BEAMS = 4
SHORT, LONG = 8, 48  # tokens of a source
CONFIGS = {"marian": families.marian, "t5": families.t5, "bart": families.bart}

Run = Callable[[list[list[int]], int], list[list[int]]]  # sources, how many tokens -> texts


def build(family: str) -> Seq2SeqModel:
    torch.manual_seed(0)
    config = CONFIGS[family]()
    network = config.build()
    for name, parameter in network.named_parameters():  # large enough that the likeliest texts are clearly so
        if parameter.ndim == 2 and "relative" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * (4 if "cross" in name else 1))
    return Seq2SeqModel(Loaded(config, network, None))


def ours(model: Seq2SeqModel) -> Run:
    def run(sources, new):
        sampling = Sampling(max_new_tokens=new, beams=BEAMS)
        rows = model.begin_all(sources, sampling)
        model.finish(rows, sampling)
        return [row.ids for row in rows]

    return run


def theirs(folder: Path) -> Run:
    import transformers

    transformers.logging.set_verbosity_error()
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    network.generation_config.forced_eos_token_id = None
    first = network.generation_config.forced_bos_token_id is not None

    def run(sources, new):
        longest = max(map(len, sources))
        ids = torch.tensor([[*source] + [0] * (longest - len(source)) for source in sources])
        mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
        out = network.generate(
            ids,
            attention_mask=mask,
            num_beams=BEAMS,
            max_new_tokens=new + first,
            early_stopping="never",
            do_sample=False,
            eos_token_id=None,
        )
        return out[:, 1 + first :].tolist()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(CONFIGS), default="marian")
    parser.add_argument("--batches", type=int, nargs="+", default=[16])
    parser.add_argument("--new", type=int, default=32, help="tokens a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds: where others use the machine too")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(1)
    model = build(options.family)
    with tempfile.TemporaryDirectory() as name:
        model.save(Path(name) / "hf", format="hf")
        runs = {"onefold": ours(model), "transformers": theirs(Path(name) / "hf")}
    print(machine())
    print(f"{options.family}: {model.parameters_count:,} parameters, fp32, {BEAMS} beams, {options.new} tokens a text")
    for count in options.batches:
        random = torch.Generator().manual_seed(1)
        lengths = torch.randint(SHORT, LONG + 1, (count,), generator=random).tolist()
        sources = [torch.randint(1000, 30000, (n,), generator=random).tolist() for n in lengths]
        print(f"\n{count} sources")
        wanted, got = (run(sources, options.new) for run in runs.values())
        print(f"  {sum(a == b for a, b in zip(wanted, got, strict=True))} of {count} texts are the same for both")

        def timed(run: Run, sources=sources) -> Callable[[], float]:
            def seconds() -> float:
                began = clock()
                run(sources, options.new)
                return (clock() - began) / options.new

            return seconds

        race({name: timed(run) for name, run in runs.items()}, options.rounds, "transformers")


if __name__ == "__main__":
    main()
