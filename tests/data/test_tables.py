"""Which column of a table is meant."""

import pytest

from onefold.core.errors import UserError
from onefold.data.tables import needed_column, usual_column


def test_a_column_is_the_one_wanted_or_goes_by_a_usual_name():
    known, usual = ["id", "body", "text"], ("text", "body")
    assert usual_column(known, "a.csv", None, usual) == "text"
    assert usual_column(known, "a.csv", None, usual, taken=["text"]) == "body"
    assert usual_column(known, "a.csv", "id", usual) == "id"
    assert usual_column(known, "a.csv", None, ("label",)) is None
    with pytest.raises(UserError, match=r"a\.csv has id, body, text, and no 'title'"):
        usual_column(known, "a.csv", "title", usual)
    with pytest.raises(UserError, match=r"a\.csv has no columns: say which"):
        needed_column([], "a.csv", None, usual, "say which")
