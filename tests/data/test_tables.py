"""Which column of a table is meant."""

import pytest

from onefold.core.errors import UserError
from onefold.data.tables import needed_column, read_table, usual_column


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


def test_lists_in_lists_without_end_are_told_by_their_line(tmp_path):
    (tmp_path / "deep.jsonl").write_text('{"a": 1}\n{"a": ' + "[" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"deep\.jsonl:2: not valid JSON"):
        list(read_table(tmp_path / "deep.jsonl", lambda known, _: known))
