import pytest

from onefold.data.text.frames import first_pieces, frames
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from tests.data.conftest import prose

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = [prose(1, 60), "short", "  blanks  around \n words ", "ünïcödé 漢字 🙂 text"]


@pytest.fixture(scope="module", params=[ENCODER_TOKENS, SPECIAL])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train([prose(i, 200) for i in range(9)], 300, request.param)


def test_a_text_that_fits_is_read_as_it_is(tokenizer):
    for text, windows in zip(TEXTS, frames(tokenizer, TEXTS, None, 400, 8)):
        assert [(w.ids, w.types) for w in windows] == tokenizer.encode_framed([text])
        assert windows[0].begins
        assert windows[0].ends
        stand = [place for place in windows[0].places if place]
        covered = {c for place in stand for c in range(*place)}
        assert covered == {i for i, character in enumerate(text) if not character.isspace()}
        assert not any(text[start].isspace() or text[end - 1].isspace() for start, end in stand)


@pytest.mark.parametrize("question", [None, "who did it"])
def test_windows_cover_a_text_and_overlap(tokenizer, question):
    text, questions = TEXTS[0], question and [question]
    [whole] = frames(tokenizer, [text], questions, 10_000, 0)[0]
    windows = frames(tokenizer, [text], questions, 40, 8)[0]
    assert len(windows) > 3
    inside = [[i for i, w in enumerate(window.words) if w is not None] for window in windows]
    first = inside[0][0]
    read = [windows[0].ids[i] for i in inside[0]]
    for window, before, own in zip(windows[1:], windows, inside[1:]):
        assert len(window.ids) <= 40
        assert window.ids[:first] == whole.ids[:first]  # all that stands before the text, the question with it
        assert [window.ids[i] for i in own][:8] == [before.ids[i] for i in inside[0]][-8:]
        read += [window.ids[i] for i in own][8:]
    assert read == [i for i, w in zip(whole.ids, whole.words) if w is not None]
    assert [w.begins for w in windows] == [True, *[False] * (len(windows) - 1)]
    assert [w.ends for w in windows] == [*[False] * (len(windows) - 1), True]


def test_a_question_may_leave_no_room(tokenizer):
    assert frames(tokenizer, ["text"], ["a long question " * 9], 12, 8) == [[]]
    assert frames(tokenizer, [TEXTS[0]], ["a"], 12, 64)[0][1].ids[-3:]  # an overlap larger than the room moves on still


def test_each_word_begins_with_one_piece_in_the_window_that_shows_most_around_it(tokenizer):
    words = TEXTS[0].split()
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    text = " ".join(words)
    windows = frames(tokenizer, [text], None, 24, 10)[0]
    pieces = first_pieces(windows, starts)
    for start, piece in zip(starts, pieces):
        window, token = windows[piece[0]], piece[1]
        assert window.places[token][0] == start
        others = [w.margin(w.places.index(window.places[token])) for w in windows if window.places[token] in w.places]
        assert window.margin(token) == max(others)
    assert len(set(pieces)) == len(words)
