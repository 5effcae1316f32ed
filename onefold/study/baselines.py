"""What a model has to beat: bits per byte of the same held-out bytes under counting and under xz.

All four baselines score the same bytes: the UTF-8 of the held-out documents, in order, with nothing between them.
The n-grams begin anew at each document, as a language model does. xz may look back over document borders.
"""

import lzma
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from onefold.core.errors import UserError
from onefold.study.ngram import ByteNgram
from onefold.study.pages.words import size

PRESET = 9 | lzma.PRESET_EXTREME
DICTIONARY = 64 << 20  # bytes that preset 9 looks back
CHUNK = 16 << 20  # held-out bytes scored behind one copy of the training bytes
PIECE = 1 << 20  # a longer training document counts as several when there is too much of it
COUNTED = 128 << 20  # training bytes that the n-grams read at most


class Document(Protocol):
    """What a source yields; a plain (name, text) pair serves as well."""

    name: str
    text: str


@dataclass(frozen=True)
class Baseline:
    """One yardstick: `bits_per_byte` of the held-out bytes, and how it came about in a line."""

    name: str
    bits_per_byte: float
    seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    train: Iterable[Document | tuple[str, str]],
    held_out: Iterable[Document | tuple[str, str]],
    progress: Callable[[str], None] = lambda name: None,
    priming: int = DICTIONARY,
) -> list[Baseline]:
    """All four baselines: bigram, 5-gram, xz alone, xz primed with training bytes. Each document is read once.

    Beyond 128 MiB of training bytes, documents spread evenly over the corpus stand for it. xz is primed with what fits
    its dictionary, or with fewer bytes when `priming` says so: 12 MB take 9 seconds on two cores, 48 MB a minute.
    `progress` hears each baseline's name before it starts. Raises UserError when either side is empty.
    """
    known = spread(_texts(train), COUNTED)
    unseen = list(_texts(held_out))
    for side, documents in (("training", known), ("held-out", unseen)):
        if not any(documents):
            raise UserError(f"there are no {side} bytes to measure baselines with: give more documents")
    found = []
    for name, baseline in (
        ("bigram", lambda: _ngram(known, unseen, 2, "pairs of bytes counted in {}")),
        ("5-gram", lambda: _ngram(known, unseen, 5, "interpolated modified Kneser–Ney over bytes, counted in {}")),
        ("xz", lambda: _xz(unseen)),
        ("primed xz", lambda: _xz_primed(known, unseen, priming)),
    ):
        progress(name)
        began = time.perf_counter()
        bits, note = baseline()
        found.append(Baseline(name, bits, time.perf_counter() - began, note))
    return found


def spread(documents: Iterable[bytes], most: int) -> list[bytes]:
    """At most `most` bytes of documents, evenly spread over all of them; all of them when they fit.

    Holds little more than `most` bytes at a time: whenever there are too many, every second document goes, and from
    then on only every second, fourth, … one is kept.
    """
    kept: list[bytes] = []
    held, stride, seen = 0, 1, 0
    for document in documents:
        for begin in range(0, max(len(document), 1), PIECE):
            seen += 1
            if (seen - 1) % stride:
                continue
            kept.append(document[begin : begin + PIECE])
            held += len(kept[-1])
            while held > most and len(kept) > 1:
                kept, stride = kept[::2], stride * 2
                held = _sum(kept)
    return [document[:most] for document in kept]


def _ngram(known: list[bytes], unseen: list[bytes], order: int, note: str) -> tuple[float, str]:
    bits = ByteNgram.fit(known, order).bits_per_byte(unseen)
    return bits, note.format(f"{size(_sum(known))} of training text")


def _xz(unseen: list[bytes]) -> tuple[float, str]:
    return 8 * _packed(b"".join(unseen)) / _sum(unseen), f"xz -9e of the {size(_sum(unseen))} of held-out text alone"


def _xz_primed(known: list[bytes], unseen: list[bytes], priming: int) -> tuple[float, str]:
    """size(sample + held-out) − size(sample), in chunks such that both always fit the dictionary."""
    text = b"".join(unseen)
    chunks = [text[begin : begin + CHUNK] for begin in range(0, len(text), CHUNK)]
    sample = spread(known, min(priming, DICTIONARY - len(chunks[0])))
    start = b"".join(sample)
    with ThreadPoolExecutor(2) as pool:  # lzma lets go of the interpreter
        alone, *together = pool.map(lambda chunk: _packed(start + chunk), [b"", *chunks])
    share = "all" if len(start) == _sum(known) else size(len(start))
    note = f"what xz -9e needs for the held-out text after {share} of the training text"
    return 8 * (sum(together) - alone * len(chunks)) / len(text), note


def _packed(data: bytes) -> int:
    return len(lzma.compress(data, preset=PRESET))


def _texts(documents: Iterable[Document | tuple[str, str]]) -> Iterable[bytes]:
    for document in documents:
        text = document[1] if isinstance(document, tuple) else document.text
        yield text.encode("utf-8", "surrogatepass")


def _sum(documents: list[bytes]) -> int:
    return sum(map(len, documents))
