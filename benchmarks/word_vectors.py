"""Word vectors: Onefold's skip-gram against gensim's, the same settings, threads and words, in turn.

    python benchmarks/word_vectors.py                               # Python's standard library
    python benchmarks/word_vectors.py --data corpus/ --threads 1 --width 300 --clock cpu

A round is one epoch over the corpus by each contender, on a fresh model, from words that both have in memory (gensim as
lists of text, Onefold as numbers, as either takes them); reading, counting and compiling are not timed. CPU seconds are
those of all threads, and tell the same on a machine that is busy with other things. Window 5, 5
negatives, subsampling 1e-3. Both leave out words that occur fewer than five times. gensim takes part where it is
installed.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from race import machine, race

from onefold.core.cores import cores
from onefold.data.sources import STDLIB
from onefold.data.text.words import END, WordCorpus, WordData
from onefold.training.words.skipgram import SkipGram, SkipGramConfig

SENTENCE = 1000  # words at most, as gensim's own reader of text8 cuts them


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clocked(work: Callable[[], object], clock: str) -> float:
    start = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - start


def epoch(method: SkipGram, threads: int, clock: str) -> float:
    with ThreadPoolExecutor(threads) as pool:
        return clocked(lambda: list(pool.map(method.step, range(method.steps))), clock)


def sentences(corpus: WordCorpus) -> list[list[str]]:
    """The corpus as text again."""
    found: list[list[str]] = [[]]
    for word in corpus.stream.tolist():
        if word == END or len(found[-1]) == SENTENCE:
            found.append([])
        if word != END:
            found[-1].append(corpus.vocabulary.words[word])
    return found


def gensim_epoch(texts: list[list[str]], width: int, threads: int, words: int, clock: str) -> float:
    from gensim.models import Word2Vec

    model = Word2Vec(vector_size=width, window=5, negative=5, sg=1, sample=1e-3, min_count=5, workers=threads)
    model.build_vocab(texts)
    return clocked(lambda: model.train(texts, total_words=words, epochs=1), clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=STDLIB, help="text, as onefold train takes it")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = WordData.from_dict({"sources": given.data}).prepare(Path(folder))
        words = corpus.facts["words"]
        print(
            f"{machine()}\n{corpus.facts['bytes'] / 1e6:.1f} MB, {words:,} words, {len(corpus.vocabulary):,} different;"
        )
        print(f"width {given.width}, {given.threads} threads; {given.clock} seconds of an epoch")
        settings = SkipGramConfig(width=given.width, epochs=1)
        settings.build(corpus, Path(folder), 0).step(0)  # compiles
        contenders: dict[str, Callable[[], float]] = {}
        contenders["onefold"] = lambda: epoch(settings.build(corpus, Path(folder), 0), given.threads, given.clock)
        baseline = "onefold"
        if find_spec("gensim"):
            texts, baseline = sentences(corpus), "gensim"
            contenders = {
                "gensim": lambda: gensim_epoch(texts, given.width, given.threads, words, given.clock)
            } | contenders
        seconds: dict[str, list[float]] = {name: [] for name in contenders}

        def noted(name: str) -> float:
            seconds[name].append(contenders[name]())
            return seconds[name][-1]

        race({name: partial(noted, name) for name in contenders}, given.rounds, baseline)
        for name, times in seconds.items():
            rates = sorted(words / t for t in times)
            print(f"{name:28}{rates[len(rates) // 2]:>12,.0f} words a second ({rates[0]:,.0f}-{rates[-1]:,.0f})")


if __name__ == "__main__":
    main()
