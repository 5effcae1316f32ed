"""Long texts in windows that a model can read, and where in the text each of their tokens stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from onefold.data.text.tokenizers.tokenizer import FRAMED_TOGETHER, Tokenizer

Place = tuple[int, int]  # characters [start, end) of a text


@dataclass(frozen=True)
class Frame:
    """One window as a model reads it, special tokens included.

    `places`: for each token where it stands in the text that is windowed, without the blanks around it; None for all
    other tokens, and those that are nothing but blanks. `words`: which of the pieces that the tokenizer first cuts a
    text into each is from. `begins`, `ends`: whether the window holds the text's beginning, its end.
    """

    ids: list[int]
    types: list[int]
    places: list[Place | None]
    words: list[int | None]
    begins: bool
    ends: bool

    def margin(self, token: int) -> float:
        """How many tokens of the text the window has around this one, on the side where it has fewer."""
        first, last = self._inside
        return min(float("inf") if self.begins else token - first, float("inf") if self.ends else last - token)

    @cached_property
    def _inside(self) -> tuple[int, int]:
        own = [i for i, word in enumerate(self.words) if word is not None]
        return own[0], own[-1]


def frames(
    tokenizer: Tokenizer, texts: Sequence[str], firsts: Sequence[str] | None, length: int, overlap: int
) -> list[list[Frame]]:
    """The windows of each text, at most `length` tokens each; neighbours share `overlap` tokens of it.

    firsts: what is read before each text in every window of it, whole (a question about it). Where so little room is
    left beside it that windows would hardly move on, they share half of theirs; an empty list: there is no room at all.
    """
    backend = tokenizer.backend
    inputs = list(texts) if firsts is None else list(zip(firsts, texts))
    found: list[list[Frame]] = []
    for start in range(0, len(inputs), FRAMED_TOGETHER):
        for encoded in backend.encode_batch(inputs[start : start + FRAMED_TOGETHER]):
            found.append(_cut(encoded, texts[len(found)], 0 if firsts is None else 1, length, overlap))
    return found


def _cut(encoded, text: str, which: int, length: int, overlap: int) -> list[Frame]:
    ids, types, offsets, words = encoded.ids, encoded.type_ids, encoded.offsets, encoded.word_ids
    own = [i for i, sequence in enumerate(encoded.sequence_ids) if sequence == which]
    first, last = (own[0], own[-1] + 1) if own else (len(ids), len(ids))
    places = [_bare(text, *offsets[i]) if first <= i < last else None for i in range(len(ids))]
    words = [word if first <= i < last else None for i, word in enumerate(words)]
    room = length - (len(ids) - (last - first))
    if room < 1:
        return []
    step = room - min(overlap, room // 2)
    windows: list[Frame] = []
    begin = first
    while True:
        end = min(begin + room, last)
        parts = (column[:first] + column[begin:end] + column[last:] for column in (ids, types, places, words))
        windows.append(Frame(*parts, begins=begin == first, ends=end == last))
        if end == last:
            return windows
        begin += step


def _bare(text: str, start: int, end: int) -> Place | None:
    """The place without the blanks at its ends."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end -= len(inside) - len(inside.rstrip())
    return (start, end) if start < end else None


def first_pieces(windows: Sequence[Frame], starts: Sequence[int]) -> list[tuple[int, int] | None]:
    """For the words that begin at these characters, in order, (window, token) of the piece that each begins with.

    Of several windows it is the one that shows most of what stands around the word. None: the tokenizer left it out.
    """
    place = {start: n for n, start in enumerate(starts)}
    found: list[tuple[float, tuple[int, int]] | None] = [None] * len(starts)
    for w, window in enumerate(windows):
        first: dict[int, int] = {}
        for token, where in enumerate(window.places):
            for character in range(*where) if where else ():
                if character in place:
                    first.setdefault(place[character], token)
        for n, token in first.items():
            margin, before = window.margin(token), found[n]
            if before is None or margin > before[0]:
                found[n] = margin, (w, token)
    return [piece and piece[1] for piece in found]
