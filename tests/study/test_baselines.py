"""The yardsticks: same bytes for all, and xz as the xz on the command line counts."""

import lzma
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from onefold.core.errors import UserError
from onefold.study.baselines import PIECE, Baseline, measure, spread


@dataclass
class Document:
    name: str
    text: str


def files(start: int, number: int) -> list[Document]:
    body = "def area_{0}(width, height={0}):\n    '''Größe of {0} → {1}'''\n    return width * height + {0}\n\n"
    return [
        Document(f"{i}.py", "".join(body.format(i * 37 + j, (i * j) ** 3) for j in range(40)))
        for i in range(start, start + number)
    ]


@pytest.fixture(scope="module")
def found() -> list[Baseline]:
    return measure(files(0, 30), files(30, 4))


def test_the_four_baselines_in_order_of_knowledge(found):
    assert [b.name for b in found] == ["bigram", "5-gram", "xz", "primed xz"]
    bits = {b.name: b.bits_per_byte for b in found}
    assert 0 < bits["primed xz"] < bits["xz"] < 8
    assert bits["5-gram"] < bits["bigram"] < 8
    assert all(b.seconds >= 0 and b.note for b in found)


def test_xz_is_what_the_tool_gives(found):
    text = "".join(d.text for d in files(30, 4)).encode()
    if tool := shutil.which("xz"):
        size = len(subprocess.run([tool, "-9e", "-c"], input=text, capture_output=True, check=True).stdout)
    else:
        size = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert {b.name: b for b in found}["xz"].bits_per_byte == pytest.approx(8 * size / len(text))


def test_primed_xz_is_a_difference_of_two_sizes(found):
    train, text = ("".join(d.text for d in files(*part)).encode() for part in ((0, 30), (30, 4)))
    preset = 9 | lzma.PRESET_EXTREME
    extra = len(lzma.compress(train + text, preset=preset)) - len(lzma.compress(train, preset=preset))
    assert {b.name: b for b in found}["primed xz"].bits_per_byte == pytest.approx(8 * extra / len(text))


def test_long_held_out_text_is_primed_in_chunks(monkeypatch, found):
    monkeypatch.setattr("onefold.study.baselines.CHUNK", 5000)
    chunked = measure(files(0, 30), files(30, 4))[-1]
    whole = found[-1]
    assert whole.bits_per_byte < chunked.bits_per_byte < 1.5 * whole.bits_per_byte  # each chunk begins anew


def test_pairs_serve_as_documents_and_names_are_heard(found):
    heard = []
    pairs = [[(d.name, d.text) for d in files(*part)] for part in ((0, 30), (30, 4))]
    again = measure(iter(pairs[0]), iter(pairs[1]), heard.append)
    assert [b.bits_per_byte for b in again] == [b.bits_per_byte for b in found]
    assert heard == [b.name for b in found]
    assert set(found[0].to_dict()) == {"name", "bits_per_byte", "seconds", "note"}


@pytest.mark.parametrize(("train", "held_out", "side"), [([], files(0, 1), "training"), (files(0, 1), [], "held-out")])
def test_nothing_to_measure_is_said(train, held_out, side):
    with pytest.raises(UserError, match=f"no {side} bytes"):
        measure(train, held_out)


def test_spread_keeps_all_that_fits_and_samples_evenly_otherwise():
    documents = [bytes([i]) * 10 for i in range(100)]
    assert spread(iter(documents), 1000) == documents
    some = spread(iter(documents), 300)
    places = [document[0] for document in some]
    assert 150 < sum(map(len, some)) <= 300
    assert places == list(range(0, 100, 4))


def test_spread_cuts_one_huge_document():
    huge = bytes(range(256)) * (5 * PIECE // 256)
    assert b"".join(spread([huge], 2 * len(huge))) == huge
    assert 2 * PIECE <= sum(map(len, spread([huge], 3 * PIECE))) <= 3 * PIECE
    assert len(spread([huge], 100)[0]) == 100
