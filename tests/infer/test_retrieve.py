"""Search and its metrics against sums by hand and scikit-learn; BM25 against its formula."""

import math

import numpy as np
import pytest
import torch

from onefold.infer.retrieve import BM25, quality, search, words


def test_search_is_exact():
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(7, 5, generator=generator), torch.randn(40, 5, generator=generator)
    scores, places = search(queries, documents, 6)
    expected = (queries @ documents.T).sort(1, descending=True)
    assert torch.equal(places, expected.indices[:, :6])
    torch.testing.assert_close(scores, expected.values[:, :6])
    assert search(queries, documents, 100)[1].shape == (7, 40)
    assert search(queries[:0], documents)[1].shape == (0, 40)


def test_metrics_are_those_of_the_definitions():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    found = np.stack([generator.permutation(30) for _ in range(20)])
    relevant = [set(generator.choice(30, generator.integers(1, 5), replace=False).tolist()) for _ in range(20)]
    ours = quality(torch.from_numpy(found), relevant, cuts=(1, 5))
    truth = np.array([[doc in own for doc in range(30)] for own in relevant], float)
    scores = np.zeros((20, 30))
    np.put_along_axis(scores, found, np.arange(30, 0, -1.0)[None].repeat(20, 0), 1)
    assert ours.ndcg == pytest.approx(metrics.ndcg_score(truth, scores, k=10))
    ranks = [min(row.tolist().index(doc) for doc in own) + 1 for row, own in zip(found, relevant)]
    assert ours.mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))
    recalls = [len(own & set(row[:5].tolist())) / len(own) for row, own in zip(found, relevant)]
    assert ours.recall[5] == pytest.approx(np.mean(recalls))
    nothing = quality(torch.from_numpy(found[:, :2]), [{int(row[7])} for row in found])
    assert (nothing.mrr, nothing.ndcg, nothing.recall[10]) == (0, 0, 0)
    with pytest.raises(ValueError, match="needs a relevant document"):
        quality(torch.zeros(1, 1).long(), [set()])


def test_names_in_code_are_words():
    assert words("readLine2(max_size) HTTPServer, Grüße") == [
        "read",
        "line",
        "2",
        "max",
        "size",
        "http",
        "server",
        "gr",
        "üß",
        "e",
    ]


def test_bm25_is_its_formula():
    pytest.importorskip("bm25s")
    documents = ["the cat sat", "the dog sat on the mat", "nothing here", "cat cat dog"]
    scores, places = BM25(documents).search(["cat", "sat mat", "unknown"], 4)
    split = [words(text) for text in documents]
    average = np.mean([len(some) for some in split])

    def score(query, some):
        total = 0.0
        for word in words(query):
            n, f = sum(word in other for other in split), some.count(word)
            total += math.log(1 + (4 - n + 0.5) / (n + 0.5)) * f / (f + 1.5 * (0.25 + 0.75 * len(some) / average))
        return total

    for row, query in enumerate(["cat", "sat mat"]):
        expected = [score(query, some) for some in split]
        np.testing.assert_allclose(scores[row], sorted(expected, reverse=True), rtol=1e-5)
        assert expected[places[row, 0]] == max(expected)
    assert scores[2].tolist() == [0, 0, 0, 0]
