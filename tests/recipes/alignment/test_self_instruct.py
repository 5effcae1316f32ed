"""The recipe of Self-Instruct, and the synthetic language of tasks that its check goes by."""

import json
from random import Random

from onefold import recipes
from onefold.infer.teaching.self_instruct import SelfInstructConfig
from onefold.infer.teaching.self_instruct import self_instruct as make_tasks
from onefold.recipes.alignment import _instructions, self_instruct
from onefold.recipes.alignment import _teaching as world
from onefold.training.run import Run


def test_the_student_is_a_run():
    for tiny in (False, True):
        run = recipes.resolve("self_instruct", {"start": "runs/some", "chat": "mine.jsonl"}, tiny)
        assert Run.from_json(run.to_json()) == run
        assert (run.start, run.data.path) == ("runs/some", "mine.jsonl")


def test_the_language_of_tasks_has_one_answer_to_each(tmp_path):
    assert _instructions.solve("Find the first and last digit below.", "3 1 4 2") == "3 2"
    assert _instructions.solve("Name the digits from last to first of the list.", "3 1 4 2") == "2 4 1 3"
    assert _instructions.solve("Report the answer whether nothing falls below.", "1 1 4 5") == "yes"
    assert _instructions.solve("Draw a graph of the row below.", "1 1 4 5") == ""
    seeds = world.write(tmp_path / "seeds.jsonl", self_instruct._people(Random(0)))
    made = {}
    for likeness in (0.7, 1.0):
        out = tmp_path / str(likeness)
        fates = make_tasks(
            SelfInstructConfig(seeds=seeds, out=out, count=40, likeness=likeness), _instructions.Program()
        )
        tasks = [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]
        made[likeness] = {task["instruction"] for task in tasks}
        assert fates["instruction: about 'draw'"] > 0
        assert 0.6 < sum(map(self_instruct._right, tasks)) / len(tasks) < 1
    assert len(made[0.7]) > len(made[1.0])  # the filter keeps them different
