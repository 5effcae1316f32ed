"""Tasks of a scripted teacher become conversations; a teacher that fails on the way is asked nothing twice."""

import json
from random import Random

import pytest

from onefold.core.errors import UserError
from onefold.data.text.chat.files import read_conversations
from onefold.infer.teaching.journal import Journal
from onefold.infer.teaching.self_instruct import (
    SelfInstructConfig,
    fields_of,
    listed,
    read_seeds,
    self_instruct,
    unfit,
)
from onefold.infer.teaching.teacher import Written

NOUNS = ["ships", "birds", "rivers", "coins", "songs", "wheels", "stars", "bridges", "letters", "gardens"]
VERBS = ["describe", "count", "compare", "classify", "praise", "explain"]


class Scripted:
    """Says what a model might; fails after `limit` answers."""

    name = "scripted"

    def __init__(self, limit: int | None = None):
        self.limit, self.asked = limit, []

    def answer(self, asked, sampling):
        for i, one in enumerate(asked):
            if self.limit is not None and len(self.asked) >= self.limit:
                raise UserError("the service is down")
            prompt = one.messages[-1]["content"]
            self.asked.append((prompt, one.copy, sampling))
            yield i, Written(self.say(prompt, one.copy), "stop")

    def say(self, prompt: str, copy: int) -> str:
        random = Random(f"{prompt}{copy}")
        if prompt.startswith("Go on"):
            words = [random.sample(NOUNS, 3) for _ in range(4)]
            tasks = [f"{random.choice(VERBS)} {a} that {b} made for {c}" for a, b, c in words]
            return f" {tasks[0]}\nTask 10: {tasks[1]}\n11. {tasks[2]}\n12) draw {tasks[3]}\n13. Too short"
        if prompt.startswith("Is the answer"):
            return "Yes." if "classify" in prompt.rsplit("Task:", 1)[1] else "No"
        if "Label: and Input:" in prompt:
            return "Label: old\nInput: a thing of wood"
        return "Input: none\nOutput: as you say" if "praise" in prompt.rsplit("Task:", 1)[1] else "Input: x\nOutput: x"


@pytest.fixture
def seeds(tmp_path):
    file = tmp_path / "seeds.jsonl"
    rows = [
        {
            "instruction": f"Seed number {n} asks for a thing like {noun}",
            "input": "",
            "output": "so",
            "classification": n % 2 == 0,
        }
        for n, noun in enumerate(NOUNS)
    ]
    published = {
        "instruction": "Tell me why",
        "instances": [{"input": "it rains", "output": "clouds"}],
        "is_classification": False,
    }
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, published]))
    return file


def test_from_seeds_to_conversations(seeds, tmp_path):
    teacher, config = Scripted(), SelfInstructConfig(seeds=seeds, out=tmp_path / "out", count=12, round=3)
    fates = self_instruct(config, teacher)
    tasks = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    talks = [messages for _, messages in read_conversations(tmp_path / "out" / "chat.jsonl")]
    assert fates["instance: kept"] == len(tasks) == len(talks) > 0
    assert fates["instruction: about 'draw'"] > 0
    assert fates["instruction: of fewer than 4 words"] > 0
    assert fates["instance: whose output is its input"] > 0
    assert {(t["classification"], t["input"], t["output"]) for t in tasks} <= {
        (True, "a thing of wood", "old"),
        (False, "", "as you say"),
    }
    first, later = teacher.asked[0][0], [p for p, *_ in teacher.asked if p.startswith("Go on")][-1]
    assert first.count("Seed number") + first.count("Tell me why") == 8
    assert later.count("Seed number") + later.count("Tell me why") == 6  # and two of the teacher's own


def test_a_pipeline_that_is_cut_off_goes_on_to_the_same_tasks(seeds, tmp_path):
    config = SelfInstructConfig(seeds=seeds, out=tmp_path / "whole", count=8, round=3)
    whole = Scripted()
    fates = self_instruct(config, whole)
    parted, asked = config.but({"out": str(tmp_path / "parted")}), []
    for limit in (2, 9, None):
        teacher = Scripted(limit)
        if limit is None:
            assert self_instruct(parted, teacher) == fates
        else:
            with pytest.raises(UserError, match=r"service is down\n\d+ answers are kept"):
                self_instruct(parted, teacher)
        asked += teacher.asked
    assert sorted(map(str, asked)) == sorted(map(str, whole.asked))
    files = [(tmp_path / folder / "tasks.jsonl").read_text() for folder in ("whole", "parted")]
    assert files[0] == files[1]
    with pytest.raises(UserError, match="begun with another likeness"):
        self_instruct(parted.but({"likeness": 0.5}), Scripted())


def test_a_teacher_with_nothing_new_ends_it(seeds, tmp_path, capsys):
    class Dull(Scripted):
        def say(self, prompt, copy):
            return "Write a poem about the sea" if prompt.startswith("Go on") else "Yes"

    fates = self_instruct(SelfInstructConfig(seeds=seeds, out=tmp_path / "out", round=1), Dull())
    assert "20 rounds brought nothing new" in capsys.readouterr().err
    assert fates["instruction: kept"] == 1
    assert fates["instance: without an output"] == 1


def test_answers_are_read_however_they_are_written():
    assert listed("Sure, here they are:\n1. One thing\nTask 2: Another\n  thing\n") == ["One thing", "Another thing"]
    assert fields_of("Input: <noinput>\nOutput: a\nb\nInput: c") == {"input": "", "output": "a\nb"}
    assert fields_of("nothing") == {}
    config = SelfInstructConfig(seeds="seeds.jsonl")
    assert unfit("Tell me what this is", config) == ""
    assert unfit("word " * 151, config) == "of more than 150 words"
    assert unfit("- tell me what this is", config) == "that begins with no letter"


def test_answers_of_something_else_are_told(tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(UserError, match=r"asked\.jsonl:1 is none of a teacher's answers"):
        Journal(Scripted(), tmp_path / "asked.jsonl")


def test_what_is_no_seed_is_told(tmp_path):
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(UserError, match=r"seeds\.jsonl:2 is no task"):
        read_seeds(file)
    for instances in ({"input": "a"}, ["text"], 7):
        file.write_text(json.dumps({"instruction": "a", "instances": instances}) + "\n")
        with pytest.raises(UserError, match=r"seeds\.jsonl:1 is no task"):
            read_seeds(file)
    with pytest.raises(UserError, match="holds no tasks"):
        read_seeds(tmp_path / "none.jsonl")
