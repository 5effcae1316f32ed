"""A report of a fine-tuned encoder shows its figures and its mistakes, and nothing of them is ever markup."""

import pytest

from onefold.data.text.labelled.labels import Example
from onefold.study.pages import texts


class Said:
    """A model whose answers are given."""

    def __init__(self, task, said, classes=("a", "b")):
        self.task, self.said, self.classes = task, said, classes


@pytest.fixture
def judged(monkeypatch):
    def made(task, said, labels, texts_of=None):
        monkeypatch.setattr("onefold.infer.evaluation.judge.task_of", lambda encoder: encoder.task)
        monkeypatch.setattr(
            "onefold.infer.evaluation.judge._ask", lambda encoder, task, rows: [said[int(r.name)] for r in rows]
        )
        classes = ("O", "B-X", "I-X") if task == "token" else ("a", "b")
        examples = [Example(str(i), (texts_of or labels)[i], "", label) for i, label in enumerate(labels)]
        return texts.text_results(Said(task, said, classes), examples)

    return made


def test_classes_and_their_mistakes(judged):
    found = judged("sequence", ["a", "b", "a"], ["a", "b", "b"], ["x", "y", "<script>alert(1)</script>" * 20])
    assert (found["rows"], found["figures"][0]["value"]) == (3, pytest.approx(2 / 3))
    [mistake] = found["mistakes"]
    assert (mistake["said"], mistake["known"], len(mistake["text"])) == ("a", "b", texts.LONGEST + 1)
    page = texts.text_sections(found)
    assert "On 3 texts that it has not seen" in page
    assert "66.7%" in page
    assert "<script>" not in page


def test_entities_numbers_and_answers(judged):
    tagged = [[["Ada", "B-X"], ["saw", "O"]]]
    found = judged("token", [["O", "B-X"]], tagged, ["Ada saw"])
    assert (found["mistakes"][0]["said"], found["mistakes"][0]["known"]) == ("saw (X)", "Ada (X)")
    found = judged("regression", [1.0, 5.0, 2.0], [1.1, 2.0, 2.5], ["x", "y", "z"])
    assert [m["text"] for m in found["mistakes"]] == ["y", "z", "x"]  # the largest first
    assert "The largest errors" in texts.text_sections(found)
    found = judged("span", ["", "x", "z"], [[["who", 0]], [["y", 3], ["x", 0]], []], ["?", "?", "?"])
    assert [(m["said"], m["known"]) for m in found["mistakes"]] == [("nothing", "who"), ("z", "nothing")]
    assert "mistakes" not in texts.text_sections(judged("sequence", ["a"], ["a"]))
