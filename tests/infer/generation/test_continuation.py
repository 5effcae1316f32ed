import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefold.infer.generation.continuation import Continuation, StopStrings


class Letters:
    """A decoder whose ids are letters; an id above 1000 becomes text only with the id after it."""

    def __init__(self):
        self.waiting = ""

    def push(self, token: int) -> str:
        if token > 1000:
            self.waiting += chr(token - 1000)
            return ""
        text, self.waiting = self.waiting + chr(token), ""
        return text

    def finish(self) -> str:
        return "?" if self.waiting else ""


def written(text: str, budget: int = 1000, ends=(), stops=(), close: bool = False) -> tuple[Continuation, list[str]]:
    row = Continuation([0], budget, ends, stops, Letters())
    pieces = []
    for letter in text:
        if row.finish is None:
            row.push(ord(letter))
            pieces.append(row.take())
    return row, pieces


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cutting_into_pieces_gives_what_stands_before_the_first_stop(text, stops, data):
    filter, out, read = StopStrings(stops), "", ""
    while len(read) < len(text) and not filter.found:
        piece = text[len(read) :][: data.draw(st.integers(1, 8))]
        read += piece
        out += filter.push(piece)
        # The first piece that completes a stop decides; all else that is out stays out.
        places = [read.find(stop) for stop in stops if stop in read]
        assert filter.found == bool(places)
        assert read.startswith(out)
        if places:
            assert out == read[: min(places)]
    if not filter.found:
        assert out + filter.finish() == text


def test_letter_by_letter_the_beginning_of_a_stop_is_held_back():
    row, pieces = written("one END two", stops=["END"])
    assert row.text == "one "
    assert row.finish == "stop"
    assert pieces == ["o", "n", "e", " ", "", "", ""]


def test_what_was_held_back_comes_when_it_is_no_stop():
    row, pieces = written("EENDEN!", stops=["ENDED"])
    assert "".join(pieces) == "EENDEN!"
    assert row.finish is None
    assert pieces[:2] == ["", "E"]


def test_what_is_held_back_at_the_end_belongs_to_the_text():
    row, _ = written("abEN", budget=4, stops=["END"])
    assert (row.text, row.finish) == ("abEN", "length")
    row, _ = written("abE.", ends=[ord(".")], stops=["END"])
    assert (row.text, row.finish, row.ids) == ("abE", "stop", [ord(c) for c in "abE"])


def test_an_unfinished_character_comes_out_at_the_end_and_may_complete_a_stop():
    row = Continuation([0], 2, (), (), Letters())
    row.push(ord("a"))
    row.push(1000 + ord("b"))
    assert (row.text, row.finish) == ("a?", "length")
    row = Continuation([0], 2, (), ("a?",), Letters())
    row.push(ord("a"))
    row.push(1000 + ord("b"))
    assert (row.text, row.finish) == ("", "stop")


def test_without_a_decoder_ids_and_reasons_remain():
    row = Continuation([0], 3, ends=[9])
    row.push(1)
    row.push(9)
    assert (row.ids, row.text, row.finish) == ([1], "", "stop")


@pytest.mark.parametrize(("ids", "reason", "text"), [([97, 98], "stop", "ab"), ([97, 98, 99, 100], "length", "abcd")])
def test_all_at_once_is_the_same_as_one_by_one(ids, reason, text):
    row = Continuation([0], 4, (), (), Letters())
    row.write(ids, reason)
    assert (row.text, row.finish, row.ids) == (text, reason, ids)
