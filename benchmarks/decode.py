"""Decoding a token at a time against what people use instead: same weights, fp32, one thread, greedy.

    python benchmarks/decode.py                     # batches of 1 and 16
    python benchmarks/decode.py --rounds 11 --new 256 --without llama.cpp,compiled

The model is a Llama of 71 million parameters (12 layers, width 512, FFN 1408, vocabulary 32,000). The bound is the time
that this machine needs to read, once, the weights that a step reads; "bound / it" is the share of it that is reached at
batch 1. All contenders get the same weights through the formats that we write; how many of their tokens are ours is
printed too. A step is the whole call, prompt of 8 tokens included, divided by the number of new tokens.
"""

import argparse
import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from race import machine, race

from onefold.core.progress import say
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from onefold.models import families

SHAPE = {"width": 512, "depth": 12, "context": 2048, "block.mixer.heads": 8, "block.ffn.width": 1408}
PROMPT = 8

Run = Callable[[list[list[int]], int], list[list[int]]]  # prompts, how many tokens -> new tokens


def build() -> Model:
    torch.manual_seed(0)
    config = families.llama2().but(SHAPE)
    network = config.build()
    for parameter in network.parameters():  # large enough that the likeliest token is clearly so
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    # Without ids that end a text: every contender has to write as many tokens as it is asked for.
    return Model(Loaded(config, network, Tokenizer.train(["a b c"] * 9, 300)))


def bound(model: Model, clock: Callable[[], float]) -> Callable[[], float]:
    """Reading every weight of a step once; of the embedding a step reads a row a text."""
    size = sum(p.numel() for p in model.network.parameters()) - model.network.embed.token.weight.numel()
    weights = torch.randn(size)

    def run() -> float:
        seconds = []
        for _ in range(3):  # a single pass is short, and so the most easily disturbed
            began = clock()
            weights.sum()
            seconds.append(clock() - began)
        return min(seconds)

    return run


def ours(model: Model) -> Run:
    def run(prompts, new):
        sampling = Sampling(max_new_tokens=new)
        rows = [model.begin(ids, sampling) for ids in prompts]
        model.finish(rows, sampling)
        return [row.ids for row in rows]

    return run


def theirs(folder: Path, compiled: bool) -> Run:
    """transformers' generate with its static cache."""
    import transformers

    transformers.logging.set_verbosity_error()
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"do_sample": False, "cache_implementation": "static", "pad_token_id": 0, "eos_token_id": None}
    if compiled:
        network.forward = torch.compile(network.forward)

    def run(prompts, new):
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        out = network.generate(ids, attention_mask=mask, max_new_tokens=new, disable_compile=True, **settings)
        return out[:, ids.shape[1] :].tolist()

    return run


def llama_cpp(file: Path, rows: int, context: int) -> Run:
    """llama.cpp's server in this process, a slot a row; its clients are threads that only wait."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.verbosity, params.n_gpu_layers = context * rows, rows, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    settings = {"temperature": 0, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}

    def run(prompts, new):
        answers: list[list[int]] = [[] for _ in prompts]

        def ask(row: int) -> None:
            body = json.dumps({**settings, "prompt": prompts[row], "n_predict": new}).encode()
            with urllib.request.urlopen(urllib.request.Request(server.listening_address + "/completion", body)) as said:
                answers[row] = json.load(said)["tokens"]

        clients = [threading.Thread(target=ask, args=(row,)) for row in range(len(prompts))]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return answers

    return run


def contenders(model: Model, rows: int, new: int, without: set[str], folder: Path) -> dict[str, Run]:
    makers = {
        "onefold": lambda: ours(model),
        "transformers": lambda: theirs(folder / "hf", compiled=False),
        "transformers, compiled": lambda: theirs(folder / "hf", compiled=True),
        "llama.cpp": lambda: llama_cpp(folder / "model.gguf", rows, PROMPT + new + 8),
        "aotinductor": lambda: aotinductor(model, rows, PROMPT + new + 8, folder),
        "onnxruntime": lambda: onnxruntime(model, rows, PROMPT + new + 8, folder / "model.onnx"),
    }
    found = {}
    for name, make in makers.items():
        if any(word in name for word in without):
            continue
        try:
            found[name] = make()
        except ImportError as error:
            say(f"without {name}: {error}")
    return found


def aotinductor(model: Model, rows: int, capacity: int, folder: Path) -> Run:
    from aoti_llama import decoder

    return decoder(model.network, rows, PROMPT, capacity, folder)


def onnxruntime(model: Model, rows: int, capacity: int, file: Path) -> Run:
    from onnx_llama import decoder

    return decoder(model.network, rows, capacity, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=64, help="tokens a call")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--without", default="", help="contenders to leave out, by words of their names: compiled,llama"
    )
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds: where others use the machine too")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(1)
    model = build()
    print(machine())
    print(f"{model.parameters_count:,} parameters, fp32, {options.new} tokens a call")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save(folder / "hf", format="hf")
        model.save(folder / "model.gguf", format="gguf", kind="F32")
        for rows in options.batches:
            print(f"\nbatch {rows}")
            prompts = torch.randint(1000, 32000, (rows, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
            runs = contenders(model, rows, options.new, set(options.without.split(",")) - {""}, folder)
            check(runs, prompts, options.new)

            def timed(run: Run, prompts=prompts) -> Callable[[], float]:
                def seconds() -> float:
                    began = clock()
                    run(prompts, options.new)
                    return (clock() - began) / options.new

                return seconds

            race({"bound": bound(model, clock)} | {n: timed(r) for n, r in runs.items()}, options.rounds, "bound")
    os._exit(0)  # llama.cpp's server does not always survive its own end


def check(runs: dict[str, Run], prompts: list[list[int]], new: int) -> None:
    """A first call of each (warm-up), and how far their tokens are ours: near ties may go either way."""
    wanted = runs["onefold"](prompts, new)
    for name, run in runs.items():
        got = run(prompts, new)
        assert all(len(ids) == new for ids in got), f"{name} stopped early"
        same = sum(a == b for row, other in zip(got, wanted, strict=True) for a, b in zip(row, other, strict=True))
        print(f"  {name}: {same / new / len(prompts):.0%} of the tokens are ours")


if __name__ == "__main__":
    main()
