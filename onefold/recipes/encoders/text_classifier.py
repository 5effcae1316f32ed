"""Your own texts and what is known of them: from a published or self-trained encoder to a classifier.

    onefold train text_classifier data=rows.csv start=path/to/roberta     # a table with columns text and label
    onefold train text_classifier data=rows.csv                           # from scratch, a small encoder
    onefold train text_classifier task=token data=names.conll             # or span, regression

The settings are those that RoBERTa was fine-tuned with (arXiv 1907.11692, table 10), but for the number of steps.
"stdlib" is passages of Python's standard library and the packages that they come from; "wordnet", glosses of WordNet
and the kinds of what they explain (Debian's wordnet-base).
"""

from onefold.data.text.documents import TrainBPE
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.encoders import roberta
from onefold.study.check import Report
from onefold.training.run import Run


def recipe(data: str = "stdlib", start: str | None = None, context: int | None = None, task: str = "sequence") -> Run:
    """context: tokens of a text at most, or of a window, which the model must have room for. task: as of roberta."""
    run = roberta.fine_tuning(data, task, start, context, "runs/text_classifier")
    if start:
        return run
    tokenizer = TrainBPE(vocab=encoders.VOCAB, special=ENCODER_TOKENS)
    model = encoders.small_encoder(run.data.context)
    return run.but({"data.tokenizer": tokenizer.to_dict(), "model": model.to_dict(), "optimizer.lr": 1e-3})


def tiny(data: str = "stdlib", start: str | None = None, context: int = 128, task: str = "sequence") -> Run:
    """A minute or two on two cores; `start` is then a small one as well, as of `onefold train roberta --tiny`."""
    return encoders.in_minutes(recipe(data, start, context, task))


def check(report: Report) -> None:
    """From scratch it tells packages of the standard library apart better than their sizes do."""
    run = encoders.briefly(encoders.miniature(tiny()), 4 * encoders.TUNING, encoders.ROWS)
    results = encoders.seeded(run.but({"optimizer.lr": encoders.TUNING_RATE}), "text_classifier")
    largest = encoders.largest_class(results[0])
    report.less("held-out error on packages", [1 - encoders.accuracy(r) for r in results], 1 - largest)
