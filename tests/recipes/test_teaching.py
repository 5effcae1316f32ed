"""The recipes of teaching: what their students are given to read."""

from random import Random

import pytest

from onefold import recipes
from onefold.data.text.chat.files import read_conversations
from onefold.recipes.alignment import _teaching as world
from onefold.recipes.alignment import ghost_attention, lima, orca2
from onefold.training.run import Run


@pytest.mark.parametrize("name", ["ghost_attention", "lima", "orca2"])
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


def test_a_rule_holds_for_the_message_that_it_stands_before_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(ghost_attention, "DIALOGUES", 20)
    file = ghost_attention._beginning(tmp_path / "begin.jsonl", Random(0))
    assert recipes.resolve("ghost_attention").data.learn == "last"
    pairs = [pair for _, talk in read_conversations(file) for pair in zip(talk[::2], talk[1::2])]
    told = [(asked["content"].split("\n\n"), said["content"]) for asked, said in pairs]
    assert 0.3 < sum(len(asked) == 2 for asked, _ in told) / len(told) < 0.7
    for (*rule, question), answer in told:
        words = " ".join(rule).split()
        wanted = tuple(dict(zip(words[::3], words[2::3])).get(kind, "") for kind in ("begin", "end"))
        assert ghost_attention.holds(wanted, answer)
        assert question.split()[-1] in answer.split()
        assert len(answer.split()) == 1 + sum(map(bool, wanted))
    assert not ghost_attention.holds(("fox", ""), "door fox")
    assert not ghost_attention.holds(("", "owl"), "")
