"""Objectives are told from data that they cannot learn from before anything is built."""

from typing import get_args

import pytest

from onefold.core.batch import RolloutBatch, Seq2SeqBatch
from onefold.core.errors import UserError
from onefold.data.every import Prepared
from onefold.data.text.chat.preferences import PreferenceData
from onefold.data.text.labelled.text import LabelledTextData
from onefold.objectives.classification import Classification
from onefold.objectives.every import AnyObjective, check_reads
from onefold.objectives.fine_tuning import SpanSelection
from onefold.objectives.language import NextToken

BATCHES = {dataset.batch for dataset in get_args(Prepared)} | {Seq2SeqBatch, RolloutBatch}


def reads(objective, batch, data) -> bool:
    try:
        check_reads(objective, batch, data)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("objective", [kind() for kind in get_args(AnyObjective)], ids=lambda o: o.kind)
def test_every_objective_learns_from_some_data_and_not_from_all(objective):
    task = getattr(objective, "task", "sequence")
    judged = objective.kind in ("preference", "kto", "reward")
    data = PreferenceData(path="rows.jsonl", task=task) if judged else LabelledTextData(task=task)
    assert {reads(objective, batch, data) for batch in BATCHES} == {True, False}


def test_what_does_not_fit_is_told_with_what_does():
    batch = next(batch for batch in BATCHES if batch.__name__ == "LabelledTextBatch")
    with pytest.raises(UserError, match=r"next_token does not learn from labelled_text data: .* classification"):
        check_reads(NextToken(), batch, LabelledTextData())
    with pytest.raises(UserError, match=r"set objective\.kind to classification"):
        check_reads(SpanSelection(), batch, LabelledTextData(task="sequence"))
    check_reads(SpanSelection(), batch, LabelledTextData(task="span"))
    with pytest.raises(UserError, match="span_selection"):
        check_reads(Classification(), batch, LabelledTextData(task="span"))
