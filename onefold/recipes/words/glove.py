"""GloVe (Pennington, Socher and Manning 2014, "GloVe: Global Vectors for Word Representation", EMNLP).

Claim: ratios of co-occurrence counts carry meaning. Fitting w·c + b + b' to log X for all pairs of words that occur
together, common ones weighted more (up to a ceiling), uses the statistics of the whole corpus and learns word vectors
as good as word2vec's in less time.

The settings are the paper's: a window of 10 words to both sides in which a pair counts 1/distance, weight (x/100)^0.75
up to 1, AdaGrad at 0.05, 100 epochs at width 300; a word's vector is the sum of its two.

Deviations: AdaGrad's sums begin at 1 and are of gradients times the learning rate, as in the authors' tool. A pair is
stored once and visited in both orders one after the other. Words are lower-cased runs of letters and digits (theirs:
Stanford's tokenizer), all that occur five times (theirs: the 400,000 most frequent). Threads write without locks.
"""

from onefold.data.sources import STDLIB
from onefold.data.text.documents import Source
from onefold.data.text.words import WordData
from onefold.recipes.words import _words as words
from onefold.study.check import Report
from onefold.training.words.glove import GloveConfig
from onefold.training.words.run import WordRun


def recipe(data: str = STDLIB) -> WordRun:
    """Width 300, 100 epochs."""
    return WordRun(
        data=WordData(sources=(Source(path=data),)),
        model=GloveConfig(width=300, window=10, epochs=100),
        out="runs/glove",
    )


def tiny(data: str = STDLIB) -> WordRun:
    """Width 100, 15 epochs: a minute or two on Python's standard library."""
    return recipe(data).but({"model.width": 100, "model.epochs": 15})


def check(report: Report) -> None:
    """Counts, loss and steps are those of the paper's formulas; neighbours on real text make sense."""
    words.counts_are_those_of_the_definition(report)
    words.glove_is_its_formula(report)
    words.judge(report, tiny(), "glove")
    report.published("accuracy on 19,544 analogies, width 300, 42B words", "75%")
