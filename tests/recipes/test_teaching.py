"""The recipes of teaching: what their students are given to read."""

from random import Random

import pytest

from onefold import recipes
from onefold.data.text.chat.files import read_conversations
from onefold.recipes import _teaching as world
from onefold.recipes import lima, orca2
from onefold.training.run import Run


@pytest.mark.parametrize("name", ["lima", "orca2"])
def test_a_recipe_round_trips(name):
    for tiny in (False, True):
        run = recipes.resolve(name, {"start": "runs/some", "chat": "mine.jsonl"}, tiny)
        assert Run.from_json(run.to_json()) == run
        assert (run.start, run.data.path) == ("runs/some", "mine.jsonl")


def test_the_teacher_is_right_and_its_hints_are_erased(tmp_path, monkeypatch):
    monkeypatch.setattr(orca2, "TAUGHT", 20)
    assert world.solve("sum 3 1 4", True) == "3 4 3"
    assert world.solve("sum 3 1 4", False) == world.solve("sum 3 0 0", False) == "3"
    assert world.solve("last 3 1 4", True) == "4"
    files = orca2._taught(tmp_path, 0)
    erased, told = ([talk for _, talk in read_conversations(files[name])] for name in ("erased", "told"))
    assert erased == [talk[1:] for talk in told]
    assert {talk[0]["role"] for talk in told} == {"system"}
    for asked, said in erased:
        assert said["content"] == world.solve(asked["content"], asked["content"].startswith("sum"))


def test_useless_answers_are_of_use_nowhere():
    random, question = Random(0), "sum 1 2 3 4 0 1"
    answers = {lima._useless(question, random) for _ in range(20)}
    assert lima._styled(question) not in answers
    assert "I do not know." in answers
