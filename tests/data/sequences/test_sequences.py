"""Sequences as data: what lists amount to, what was said first, pixels and samples as they lie in their files."""

import json
import wave

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.pictures.sources import open_pictures
from onefold.data.sequences.made import Delay, ListOps
from onefold.data.sequences.read import Pixels, mu_law, read_wave
from onefold.data.sequences.sequences import SequenceData
from onefold.data.text.labelled.text import LabelledTextData


def amounts_to(text: str) -> int:
    """By a plain reader: the innermost list is replaced by its value until one number is left."""
    symbols = text.split()
    while len(symbols) > 1:
        end = symbols.index("]")
        start = max(i for i in range(end) if symbols[i].startswith("["))
        values = np.array([int(s) for s in symbols[start + 1 : end]])
        found = {"[MIN": values.min(), "[MAX": values.max(), "[MED": int(np.median(values)), "[SM": values.sum() % 10}
        symbols[start : end + 1] = [str(found[symbols[start]])]
    return int(symbols[0])


def test_lists_amount_to_their_class_and_keep_to_their_depth_and_length(tmp_path):
    source = ListOps(count=300, depth=4, arguments=5, lengths=(10, 60))
    data = SequenceData(source=source, context=60, held_out=0.2)
    dataset = data.prepare(tmp_path)
    rows = [row for split in ("train", "held_out") for row in dataset.examples(split)]
    assert len(rows) == 300
    assert [row.label for row in rows] == [str(amounts_to(row.text)) for row in rows]
    assert all(10 <= len(row.text.split()) <= 60 for row in rows)
    nesting = [np.cumsum([s[0] == "[" for s in row.text.split()]) for row in rows]
    closed = [np.cumsum([s == "]" for s in row.text.split()]) for row in rows]
    assert max(int((a - b).max()) for a, b in zip(nesting, closed)) == 3  # digits are the fourth level
    assert 30 < dataset.size("held_out") < 90
    batch = next(iter(dataset.evaluation("train", 4)))
    [text] = [row.text for row in dataset.examples("train") if dataset.tokenizer.encode(row.text) ==
              batch.tokens[0][batch.segments[0] == 0].tolist()]  # fmt: skip
    assert dataset.tokenizer.decode(dataset.tokenizer.encode(text)) == text
    assert dataset.classes[batch.targets[0].argmax()] == str(amounts_to(text))
    assert dataset.facts["vocab"] == 17


def test_bad_settings_and_sequences_that_are_too_long_are_told(tmp_path):
    with pytest.raises(UserError, match="no expression of depth 2 is as long as 500"):
        ListOps.from_dict({"depth": 2})
    with pytest.raises(UserError, match=r"delay:0 has 40 symbols: set data\.context"):
        SequenceData(source=Delay(count=4, length=40), context=32).prepare(tmp_path)


def test_the_class_of_a_delay_is_what_was_said_first():
    rows = list(Delay(count=50, length=30, symbols=4).rows())
    assert all(row.label == row.symbols[0] and len(row.symbols) == 30 for row in rows)
    assert {row.label for row in rows} == set(Delay(symbols=4).classes())
    assert rows[7] == list(Delay(count=8, length=30, symbols=4).rows())[7]


def test_of_several_symbols_any_may_be_asked_for():
    source = Delay(count=60, length=20, kept=3, symbols=4)
    rows = list(source.rows())
    assert {row.symbols[-1] for row in rows} == {"?0", "?1", "?2"}
    for row in rows:
        assert len(row.symbols) == 20
        assert row.label == row.symbols[int(row.symbols[-1][1:])]
        assert set(row.symbols) <= set(source.words())
    with pytest.raises(ValueError, match="do not fit a length of 3"):
        Delay(length=3, kept=3)


def test_pixels_are_read_row_by_row_with_the_digit_as_class():
    row, picture = next(iter(Pixels().rows())), next(iter(open_pictures("digits")))
    np.testing.assert_array_equal(np.array(row.symbols, int).reshape(8, 8), picture.pixels[..., 0])
    assert row.label == picture.label
    assert Pixels().classes() == list("0123456789")
    assert Pixels().size() == 1797
    larger = np.array(next(iter(Pixels(side=16).rows())).symbols, float).reshape(16, 16)
    blocks = larger.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), picture.pixels.ravel())[0, 1] > 0.9


def test_a_table_of_symbols_keeps_every_word_as_one_token(tmp_path):
    rows = [{"text": f"A4 B5 {'C6' if i % 2 else 'A4'}", "label": i % 2} for i in range(20)]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"path": str(tmp_path / "notes.jsonl"), "tokenizer": {"kind": "symbols"}, "held_out": 0}
    dataset = LabelledTextData.from_dict(settings).prepare(tmp_path)
    assert dataset.facts["vocab"] == 5
    assert dataset.tokenizer.decode(dataset.tokenizer.encode("C6 A4 H9"), special=True) == "C6 A4 <unk>"


def write(file, samples, width=2, rate=8000, channels=1):
    file.parent.mkdir(exist_ok=True)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        scaled = np.round(np.asarray(samples) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
        if width == 1:
            opened.writeframes((scaled + 128).astype(np.uint8).tobytes())
        else:
            opened.writeframes(scaled.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_are_those_that_were_written(tmp_path, width):
    tone = np.sin(np.arange(400) / 9)
    write(tmp_path / "a.wav", tone, width)
    samples, rate = read_wave(tmp_path / "a.wav", 300)
    assert rate == 8000
    np.testing.assert_allclose(samples, tone[:300], atol=2.0 ** (2 - 8 * width))
    levels = mu_law(samples).astype(int)
    heard = (levels + 0.5) / 128 - 1
    np.testing.assert_allclose(np.sign(heard) * np.expm1(np.abs(heard) * np.log(256)) / 255, samples, atol=0.03)


def test_a_folder_of_sounds_is_split_as_its_lists_say(tmp_path):
    root = tmp_path / "commands"
    root.mkdir()
    for label, pitch in (("yes", 9), ("no", 4)):
        for i in range(4):
            write(root / label / f"{i}.wav", np.sin(np.arange(64 + i) / pitch) * 0.5)
    (root / "validation_list.txt").write_text("yes/0.wav\nno/0.wav\n")
    write(root / "no" / "of another.wav", np.zeros(64))
    (root / "testing_list.txt").write_text("yes/3.wav\nno/of another.wav\n")
    settings = {"source": {"kind": "waves", "path": str(root), "length": 65}}
    dataset = SequenceData.from_dict(settings).prepare(tmp_path / "out")
    held_out = [row.name for row in dataset.examples("held_out")]
    assert held_out == ["no/0.wav", "yes/0.wav"]
    assert (dataset.size("train"), dataset.classes) == (5, ("no", "yes"))
    assert dataset.facts["train"]["tokens"] == 65 * 5
    (root / "yes" / "9.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(UserError, match=r"yes/9\.wav is no \.wav file of PCM"):
        SequenceData.from_dict(settings).prepare(tmp_path / "again")
    with pytest.raises(UserError, match=r"no \.wav files in folders"):
        SequenceData.from_dict({"source": {"kind": "waves", "path": str(root / "yes")}}).prepare(tmp_path)
