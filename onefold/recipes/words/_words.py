"""What the checks of word2vec and GloVe ask: small corpora whose right answer is known, and one of real text."""

import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onefold.data.text.words import END, Vocabulary, WordCorpus
from onefold.models.words.word_vectors import WordVectors
from onefold.study.check import Report, whole
from onefold.training.words import glove
from onefold.training.words.glove import Glove, GloveConfig
from onefold.training.words.run import WordRun, train
from onefold.training.words.skipgram import SkipGram, SkipGramConfig, alias_table, keep_probability

SEEDS = (0, 1, 2)
ASKED = ("file", "list", "error", "socket", "min", "json", "path", "thread")
# Words of one kind, which Python's standard library uses in the same places.
GROUPS = (
    ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"),
    ("one", "two", "three", "four", "five"),
    ("list", "tuple", "dict", "set", "frozenset"),
    ("int", "float", "complex", "str", "bytes"),
    ("hours", "minutes", "seconds", "days", "weeks"),
    ("read", "write", "seek", "flush", "truncate"),
    ("min", "max", "sum", "abs", "round"),
    ("typeerror", "valueerror", "keyerror", "indexerror", "attributeerror"),
)


def corpus(texts: list[list[int]], vocab: int) -> WordCorpus:
    """Numbers as words; each number must occur."""
    stream = np.array([word for text in texts for word in (*text, END)], np.int32)
    counts = np.bincount(stream[stream >= 0], minlength=vocab)
    return WordCorpus(Vocabulary([str(i) for i in range(vocab)], counts), stream, {"hash": hash(stream.tobytes())})


def steps_follow_the_gradient(report: Report) -> None:
    """A step of skip-gram against autograd on −log σ(v·u) − Σ log σ(−v·u'), the negative of equation 4."""
    for negatives in (0, 3):
        worst = max(_from_autograd(negatives, seed) for seed in SEEDS)
        report.close(f"step with {negatives} negatives, furthest from autograd's", worst, 0, 2e-6)


def _from_autograd(negatives: int, seed: int) -> float:
    """In a text of two words each is predicted from the other. A negative is the other word too, or it is the middle
    word itself and does not count: so one of the numbers of times that it was drawn must give what the step gave."""
    settings = SkipGramConfig(width=5, window=1, subsample=0, epochs=1, negatives=negatives, rate=0.5, power=0)
    method = SkipGram(settings, corpus([[0, 1]], 2), seed)
    before = _randomised(method.tensors, seed)
    method.step(0)
    distances = []
    for drawn in np.ndindex(negatives + 1, negatives + 1):
        v, u = (tensor.clone().requires_grad_() for tensor in before)
        for middle, times in enumerate(drawn):
            neighbour, change = 1 - middle, torch.zeros(settings.width)
            for target, sign in [(middle, 1), *[(neighbour, -1)] * times]:
                of_v, of_u = torch.autograd.grad(-F.logsigmoid(sign * v[neighbour] @ u[target]), (v, u))
                change -= settings.rate * of_v[neighbour]
                u.data -= settings.rate * of_u
            v.data[neighbour] += change
        distances.append(_distance(method.tensors, (v, u)))
    return min(distances)


def draws_follow_their_distribution(report: Report) -> None:
    """The alias table spells f^0.75; subsampling keeps what its formula says."""
    counts = np.array([1000, 400, 100, 30, 5, 5, 1])
    share, other = alias_table(counts**0.75)
    drawn = (share + np.bincount(other, 1 - share, len(counts))) / len(counts)
    wanted = counts**0.75 / (counts**0.75).sum()
    report.close("probabilities of negatives, furthest from f^0.75", float(abs(drawn - wanted).max()), 0, 1e-12)
    kept = keep_probability(np.array([9600, 400]), 1e-2)
    report.close("share kept of a word of 4% at a threshold of 1%", float(kept[1]), 0.75, 1e-12)  # √¼ + ¼


def finds_shifted_mutual_information(report: Report, pairs: int = 60_000) -> None:
    """Texts of two words from a known joint distribution, and as many numbers as words: then v·u must become
    PMI − log k (Levy and Goldberg 2014). As a negative that is the right answer does not count, exactly it is
    log P(w, c) − log k(P(w) − P(w, c)) − log P(c)."""
    vocab, k = 8, 2
    settings = SkipGramConfig(width=vocab, window=1, negatives=k, epochs=10, rate=0.1, subsample=0, power=1)
    distances, correlations = [], []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        frequency = 1 / np.arange(1, vocab + 1)
        joint = random.gamma(2.0, size=(vocab, vocab)) * np.outer(frequency, frequency)
        texts = np.array(divmod(random.choice(vocab**2, pairs, p=joint.ravel() / joint.sum()), vocab)).T
        method = SkipGram(settings, corpus(texts.tolist(), vocab), seed)
        for number in range(method.steps):
            method.step(number)
        both = np.zeros((vocab, vocab))
        np.add.at(both, (texts[:, 0], texts[:, 1]), 1)
        both = (both + both.T) / both.sum() / 2
        each = both.sum(0)
        exact = np.log(both / (k * (each[:, None] - both) * each))
        shifted = np.log(both / (each[:, None] * each)) - np.log(k)
        found = method.tensors["vectors"] @ method.tensors["contexts"].T
        distances.append(float(abs(found - exact).mean()))
        correlations.append(float(np.corrcoef(found.ravel(), shifted.ravel())[0, 1]))
    report.less("mean distance of v·u from the optimum", distances, 0.1)
    report.note("correlation of v·u with PMI − log k", correlations)


def counts_are_those_of_the_definition(report: Report) -> None:
    """Σ 1/distance over all pairs in a window, by brute force; from a table so small that it was emptied often."""
    window, vocab, random = 4, 300, np.random.default_rng(0)
    texts = [random.zipf(1.3, n) % vocab for n in (4000, 3000, 1)] + [np.arange(vocab)]
    dense = np.zeros((vocab, vocab))
    for text in texts:
        for distance in range(1, window + 1):
            np.add.at(dense, (text[distance:], text[:-distance]), 1 / distance)
    dense += dense.T
    for memory in (1e-9, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            place = glove.count(corpus([list(text) for text in texts], vocab), window, memory, Path(folder))
            pairs = np.concatenate([np.fromfile(file, glove.PAIR) for file in place.glob("*.pairs")])
        found = np.zeros((vocab, vocab))
        found[pairs["first"], pairs["second"]] = found[pairs["second"], pairs["first"]] = pairs["count"]
        size = "a table of 4,096 pairs" if memory < 1 else "one table"
        report.equal(f"pairs, {size}", len(pairs), int((np.triu(dense) > 0).sum()))
        report.close(
            f"counts, {size}, furthest from brute force", float((abs(found - dense) / (1 + dense)).max()), 0, 1e-5
        )


def glove_is_its_formula(report: Report) -> None:
    """The loss of all pairs against the dense one; AdaGrad's steps against autograd's; counts around the ceiling."""
    texts = [list(np.random.default_rng(1).zipf(1.5, 400) % 12), list(range(12))]
    settings = GloveConfig(width=6, window=3, epochs=1, ceiling=20)
    with tempfile.TemporaryDirectory() as folder:
        method = Glove(settings, corpus(texts, 12), Path(folder), 0)
        before = _randomised({name: method.tensors[name] for name in ("vectors", "contexts")}, 0)
        passed = [method.step(number) for number in range(method.steps)]
        order = np.concatenate([method.pairs(number) for number in range(method.steps)])
    counts = torch.zeros(12, 12)
    for a, b, count in order.tolist():
        counts[a, b] = counts[b, a] = count
    w, c = (tensor.clone().requires_grad_() for tensor in before)
    memory = [torch.ones_like(w), torch.ones_like(c)]
    told = 0.0
    for a, b, _ in order.tolist():
        for i, j in ((a, b), (b, a))[: 1 if a == b else 2]:
            loss = _glove_loss(w, c, counts)[i, j]
            told += loss.item()
            for tensor, gradient, sums in zip((w, c), torch.autograd.grad(loss, (w, c)), memory):
                tensor.data -= settings.rate * gradient / sums.sqrt()
                sums += (settings.rate * gradient) ** 2
    report.equal("entries of the matrix that a pass visits", sum(n for _, n, _ in passed), int((counts > 0).sum()))
    report.close("loss of a pass against autograd's", sum(loss for loss, _, _ in passed) / told, 1, 1e-5)
    report.close("vectors after it, furthest from autograd's", _distance(method.tensors, (w, c)), 0, 1e-5)


def _glove_loss(w: Tensor, c: Tensor, counts: Tensor) -> Tensor:
    """f(X)(w·c + b + b' − log X)²/2 of every entry, dense. Biases are the last column; GloveConfig(ceiling=20)."""
    fitted = w[:, :-1] @ c[:, :-1].T + w[:, -1:] + c[:, -1]
    weight = torch.where(counts < 20, (counts / 20) ** 0.75, 1.0)
    return weight * (fitted - counts.clamp(min=1e-9).log()) ** 2 / 2


def judge(report: Report, run: WordRun, name: str) -> None:
    """On Python's standard library: does a word's nearest among words of eight kinds belong to its own kind?"""
    found = [whole(train(run.but({"seed": seed, "out": f"runs/check/{name}/{seed}"}))).vectors for seed in SEEDS]
    chosen = [[word for word in group if word in found[0]] for group in GROUPS]
    total = sum(map(len, chosen))
    chance = fmean((len(group) - 1) / (total - 1) for group in chosen for _ in group)
    report.less(
        f"share of {total} words whose nearest is of another kind, against chance",
        [1 - kinship(vectors, chosen) for vectors in found],
        1 - chance,
    )
    for word in ASKED:
        report.note(f"nearest to {word}", ", ".join(near for near, _ in found[0].neighbours(word, 5)))
    first, second = (vectors.unit(np.arange(min(1000, len(vectors)))) for vectors in found[:2])
    cosines = (first @ first.T)[np.triu_indices(len(first), 1)], (second @ second.T)[np.triu_indices(len(second), 1)]
    report.note("correlation of cosines between two seeds, 1,000 words", float(np.corrcoef(*cosines)[0, 1]))


def kinship(vectors: WordVectors, groups: list[list[str]]) -> float:
    """Share of the words whose nearest one, among all words of all groups, is of their own group."""
    kind = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    unit = vectors.unit(np.array([vectors.place(word) for group in groups for word in group]))
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return float((kind[cosines.argmax(1)] == kind).mean())


def _randomised(tensors: dict[str, np.ndarray], seed: int) -> list[Tensor]:
    """Standard normal numbers in all of them, in place; → copies for autograd."""
    random = np.random.default_rng(seed)
    for tensor in tensors.values():
        tensor[:] = random.normal(size=tensor.shape)
    return [torch.tensor(tensor.copy()) for tensor in tensors.values()]


def _distance(tensors: dict[str, np.ndarray], expected: tuple[Tensor, Tensor]) -> float:
    pairs = zip((tensors["vectors"], tensors["contexts"]), expected)
    return max(float(abs(ours - theirs.detach().numpy()).max()) for ours, theirs in pairs)
