"""Likeness is ROUGE-L as its usual implementation has it; a selection tells what became of every conversation."""

import json
import random

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.rouge import Known
from onefold.data.text.chat.selection import SelectionConfig, select

WORDS = ["the", "a", "cat", "dog's", "sat,", "on.", "under", "mat", "42", "snow-white", "Tree"]


def test_likeness_is_rouge_l():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(90)]  # larger than the first tables
    known = Known()
    for text in texts:
        found = known.likeness(text)
        expected = [scorer.score(other, text)["rougeL"].fmeasure for other in texts[: len(known)]]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        known.add(text)
    assert known.nearest(texts[7])[0] == 1.0
    assert known.nearest("nothing of it") == (0.0, 0)
    assert Known().nearest("a") == (0.0, -1)
    assert known.nearest("...") == (0.0, 0)


def rows(file, talks):
    lines = [{"instruction": asked, "output": said} for asked, said in talks]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


TALKS = [
    ("Name three colours of the rainbow", "Red, green and blue."),
    ("name  three colours of the rainbow", "Violet, indigo and red."),
    ("Name four colours of the rainbow", "Red, orange, green and blue."),
    ("What is a verb?", "It says what is done."),
    ("Tell a joke", "As an AI language model, I have no humour."),
    ("Why is the sky blue?", "Scattering"),
    ("How do birds find their way over the sea?", "By the sun, by stars and by the field of the earth."),
]


def test_every_conversation_has_a_fate_that_is_told(tmp_path, capsys):
    file, out = rows(tmp_path / "all.jsonl", TALKS), tmp_path / "few.jsonl"
    fates = select(file, out)
    expected = {
        "kept": 3,
        "question asked before, word by word": 1,
        "question like one that is kept (ROUGE-L above 0.7)": 1,
        "answer with 'as an ai language model'": 1,
        "answer of fewer than 3 words": 1,
    }
    assert fates == expected
    told = capsys.readouterr().err
    assert all(f"{number:,}  {fate}" in told for fate, number in expected.items())
    assert [talk[0]["content"] for _, talk in read_conversations(out)] == [TALKS[i][0] for i in (0, 3, 6)]


def test_the_longest_answers_go_first_where_few_are_wanted(tmp_path):
    file, out = rows(tmp_path / "all.jsonl", TALKS), tmp_path / "few.jsonl"
    fates = select(file, out, SelectionConfig(count=2, order="longest"))
    assert fates["kept"] == 2
    assert fates["not needed: there were enough"] == 2
    assert [talk[0]["content"] for _, talk in read_conversations(out)] == [TALKS[i][0] for i in (2, 6)]


def test_mistakes_are_told(tmp_path):
    file = rows(tmp_path / "all.jsonl", TALKS)
    with pytest.raises(UserError, match="overwrite"):
        select(file, file)
    with pytest.raises(UserError, match=r"nothing in .* passes"):
        select(file, tmp_path / "few.jsonl", SelectionConfig(said_words=(100, 200)))
    assert not (tmp_path / "few.jsonl").exists()
