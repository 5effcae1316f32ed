"""word2vec (Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space", arXiv 1301.3781, and
"Distributed Representations of Words and Phrases and their Compositionality", arXiv 1310.4546).

Claim: a word's neighbours in text say what it means. A log-bilinear model that tells them from words drawn at random
learns vectors whose directions are relations (king − man + woman ≈ queen), on a billion words in a day, without a
hidden layer.

This is skip-gram with negative sampling, with the settings that the authors' tool has (window 5, 5 negatives drawn by
frequency to the power of 0.75, subsampling at 1e-3, 5 epochs), and the width of the paper. Every word draws its window
from 1 to 5; the learning rate falls in a straight line from 0.025.

Deviations: the paper subsamples at 1e-5 and by √(t/f) (data of a billion words: model.subsample=1e-5); here as in the
tool by √(t/f) + t/f. σ is computed, not looked up. Words are lower-cased runs of letters and digits, a window ends
with its document (data.ends=line: with its line) or with its piece of 10,000 words; pieces are read in another order in
every epoch (the tool: in the corpus's). Hierarchical softmax, CBOW and the joining of
phrases are left out; phrases that a corpus joins by _ stay whole. Threads write to the same matrices without locks, as
the tool's do: only with trainer.threads=1 the same run gives the same bits.
"""

from onefold.data.sources import STDLIB
from onefold.data.text.documents import Source
from onefold.data.text.words import WordData
from onefold.recipes.words import _words as words
from onefold.study.check import Report
from onefold.training.words.run import WordRun
from onefold.training.words.skipgram import SkipGramConfig


def recipe(data: str = STDLIB) -> WordRun:
    """300 numbers a word, as the paper's; about 2 · 10⁵ words a second on a core."""
    return WordRun(
        data=WordData(sources=(Source(path=data),)),
        model=SkipGramConfig(width=300),
        out="runs/word2vec",
    )


def tiny(data: str = STDLIB) -> WordRun:
    """100 numbers a word: a minute or two on Python's standard library."""
    return recipe(data).but({"model.width": 100})


def check(report: Report) -> None:
    """Its gradient is that of the paper's objective; it finds shifted mutual information; neighbours make sense."""
    words.steps_follow_the_gradient(report)
    words.draws_follow_their_distribution(report)
    words.finds_shifted_mutual_information(report)
    words.judge(report, tiny(), "word2vec")
