"""Preferences out of a model's own answers: what is preferred to what, what is kept, and what is told of the gain."""

import json
from pathlib import Path

import pytest

from onefold.infer.teaching.teacher import Written
from onefold.recipes import _own_answers
from onefold.recipes._own_answers import ANSWERS, OwnAnswers, Request, read_requests, to_learn_from
from onefold.study.pages.gain import gain_section

GOOD, BAD = "def f(a):\n    return a", "def f(a"
REQUESTS = [Request(f"Write a Python function. Number {n} of them.", f"def g{n}(a):\n    return a") for n in range(24)]


class Canned:
    """Answers every third request well, of a copy above 0; and `better` all of them."""

    asked = 0

    def __init__(self, model: Path, name: str, batch: int):
        self.name, self.better = name, model.name == "better"

    def answer(self, asked, sampling):
        for i, one in enumerate(asked):
            Canned.asked += 1
            number = int(one.messages[0]["content"].split()[-3])
            good = self.better or (one.copy and number % 3 == 0)
            yield i, Written(GOOD if good else BAD, "stop" if number != 7 else "length")


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(_own_answers, "ModelTeacher", Canned)
    monkeypatch.setattr(_own_answers, "_chatting", lambda place: place)
    monkeypatch.setattr(Canned, "asked", 0)
    return OwnAnswers(tmp_path, seed=0)


def test_an_answer_that_passes_is_preferred_and_else_the_known_one(own):
    table = own.pairs(Path("start"), iter(REQUESTS), 12, seconds=1e9)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [request.text for request in REQUESTS]
    assert all(row["rejected"] == BAD for row in rows)
    assert [row["own"] for row in rows] == [n % 3 == 0 for n in range(24)]
    assert all(row["chosen"] == (GOOD if row["own"] else r.known) for row, r in zip(rows, REQUESTS))


def test_what_was_said_is_not_asked_again(own):
    before = own.pairs(Path("start"), REQUESTS, 12, seconds=1e9).read_text()
    assert Canned.asked == 2 * len(REQUESTS)
    said = (own.folder / ANSWERS).read_text()
    (own.folder / ANSWERS).write_text(said[: len(said) - 30])  # as a kill leaves it
    (own.folder / "pairs.jsonl").unlink()
    assert own.pairs(Path("start"), REQUESTS, 12, seconds=1e9).read_text() == before
    assert Canned.asked == 2 * len(REQUESTS) + 1
    own.pairs(Path("start"), REQUESTS, 12, seconds=1e9)
    assert Canned.asked == 2 * len(REQUESTS) + 1


def test_too_few_pairs_are_told(own, capsys):
    assert own.pairs(Path("start"), REQUESTS[:3], 12, seconds=1) is None
    assert "too few pairs" in capsys.readouterr().err


def test_little_time_asks_one_batch(own, monkeypatch):
    ticks = iter([0.0, 10.0])
    monkeypatch.setattr(_own_answers.time, "monotonic", lambda: next(ticks, 10.0))
    own.pairs(Path("start"), REQUESTS, 12, seconds=1)
    assert Canned.asked == _own_answers.ROWS


def test_the_gain_is_told_with_its_interval_and_none_is_called_none(own):
    own.pairs(Path("start"), REQUESTS, 24, seconds=1e9)
    gained = own.gain(Path("start"), Path("better"), REQUESTS)
    before = 16 / 72  # of three answers to every third request two are good
    assert gained["before"]["value"] == pytest.approx(before)
    assert gained["after"]["value"] == pytest.approx(23 / 24)  # one did not come to an end
    assert gained["gain"]["low"] > 0.55
    assert gained["requests"] == 24
    assert sum(gained["faults"][0].values()) == 3 * 24
    page = str(gain_section(gained))
    assert "73.6 points more" in page
    assert "24 pairs" in page
    assert "did not come to an end" in page

    none = own.gain(Path("start"), Path("start"), REQUESTS)
    assert "no difference that so few requests could show (+0.0 to +0.0 points" in str(gain_section(none))


def test_what_models_write_is_no_markup(own):
    own.pairs(Path("start"), REQUESTS, 12, seconds=1e9)
    found = own.gain(Path("start"), Path("better"), REQUESTS)
    found["examples"][0]["after"]["text"] = found["examples"][0]["request"] = "<script>alert(1)</script>"
    assert "<script" not in str(gain_section(found))


def test_known_answers_that_do_not_pass_are_no_model(tmp_path):
    rows = [("Write a Python function. Long enough.", GOOD), ("The same again", BAD), ("Long" * 200, GOOD)]
    said = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in said))
    assert [request.known for request in read_requests(file)] == [GOOD, BAD, GOOD]
    assert [*to_learn_from(read_requests(file))] == [Request(*rows[0])]
