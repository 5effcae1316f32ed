"""What an encoder says of each word of a text, and the names, places and other entities that words make up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from onefold.core.errors import UserError
from onefold.data.text.frames import Frame, Place, first_pieces, frames
from onefold.data.text.labelled.labels import OUTSIDE

if TYPE_CHECKING:
    from onefold.infer.text_encoder import TextEncoder

OVERLAP = 64  # tokens that neighbouring windows of a long text share
BEGINS, CLOSES = "BSU", "ESLU"  # prefixes of tags (IOB, IOBES, BILOU) that begin an entity, and that end one
PREFIXES = {*BEGINS, *CLOSES, "I", "M"}


@dataclass(frozen=True)
class Tag:
    """A word, where it stands, and what it was called with which probability."""

    word: str
    name: str
    share: float
    start: int
    end: int


@dataclass(frozen=True)
class Entity:
    """Words that belong together, where they stand, and the mean of their probabilities."""

    text: str
    kind: str
    share: float
    start: int
    end: int


@torch.no_grad()
def tag_texts(encoder: "TextEncoder", texts: Sequence[str | Sequence[str]]) -> list[list[Tag]]:
    """The tags of each text: of the words as the tokenizer cuts it, or, of a list of words, of those.

    Windows over long texts overlap, and each word is judged where most of what surrounds it is seen.
    """
    if isinstance(texts, str):
        raise UserError("give a list of texts; for a single one, [text]")
    if encoder.task != "token" or not encoder.config.classes:
        raise UserError("this model does not tag words; train one on words and tags: task=token data=… start=…")
    joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
    windows = frames(encoder.tokenizer, joined, None, encoder.config.context, OVERLAP)
    flat = [window for some in windows for window in some]
    shares = encoder.outputs(
        [(w.ids, w.types) for w in flat], lambda f: encoder.network.classify(f).float().softmax(-1)
    )
    found: list[list[Tag]] = []
    begun = 0
    for given, text, some in zip(texts, joined, windows):
        places = _own_words(some) if isinstance(given, str) else _given_words(given)
        tags: list[Tag] = []
        for (start, end), piece in zip(places, first_pieces(some, [start for start, _ in places])):
            if piece is None:  # the tokenizer left it out
                tags.append(Tag(text[start:end], OUTSIDE, 0.0, start, end))
                continue
            share, best = shares[begun + piece[0]][piece[1]].max(0)
            tags.append(Tag(text[start:end], encoder.classes[int(best)], float(share), start, end))
        found.append(tags)
        begun += len(some)
    return found


def _own_words(windows: Sequence[Frame]) -> list[Place]:
    found: dict[int, Place] = {}
    for window in windows:
        for word, place in zip(window.words, window.places):
            if word is not None and place is not None:
                start, end = found.get(word, place)
                found[word] = min(start, place[0]), max(end, place[1])
    return sorted(found.values())


def _given_words(words: Sequence[str]) -> list[Place]:
    """In the text that blanks join them to."""
    places: list[Place] = []
    start = 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return places


def entities(text: str, tags: Sequence[Tag]) -> list[Entity]:
    """Those of a text that was tagged."""
    found: list[Entity] = []
    for kind, first, last in spans([tag.name for tag in tags]):
        own = tags[first : last + 1]
        start, end = own[0].start, own[-1].end
        found.append(Entity(text[start:end], kind, sum(tag.share for tag in own) / len(own), start, end))
    return found


def spans(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, first word, last word) of the entities that a sequence of tags spells, as CoNLL's evaluation reads them.

    An entity also begins where a tag goes on with another kind, or with nothing.
    """
    found: list[tuple[str, int, int]] = []
    before = ""  # the prefix of an entity that goes on; empty: there is none
    for i, name in enumerate(names):
        if name == OUTSIDE:
            before = ""
            continue
        prefix, kind = parse(name)
        if not before or prefix in BEGINS or before in CLOSES or found[-1][0] != kind:
            found.append((kind, i, i))
        else:
            found[-1] = (kind, found[-1][1], i)
        before = prefix
    return found


def parse(name: str) -> tuple[str, str]:
    """(prefix, kind) of a tag; one without a prefix goes on with its kind."""
    prefix, bar, kind = name.partition("-")
    return (prefix, kind) if bar and prefix in PREFIXES else ("I", name)


def spell_entities(classes: Sequence[str]) -> bool:
    """Whether these tags mark entities (B-PER, I-PER, O), and not a kind of every word."""
    return OUTSIDE in classes or all(name.partition("-")[1] and name.partition("-")[0] in PREFIXES for name in classes)
