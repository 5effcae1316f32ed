"""How good an encoder is on rows whose classes, tags, answers or numbers are known: asked as a user would ask it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.text.labelled.labels import TASKS, Example
from onefold.data.text.labelled.text import LabelledTextData
from onefold.infer.answers import answer_questions
from onefold.infer.evaluation import scores
from onefold.infer.tags import spell_entities
from onefold.infer.text_encoder import TextEncoder

TOGETHER = 256  # rows
SPLIT_SETTINGS = ("text", "second", "label", "held_out", "validation", "split_seed")  # of what a model was trained on


@dataclass(frozen=True)
class Judgement:
    """The figures of a task on some rows, and what was said of each: a class, tags, an answer or a number."""

    task: str
    figures: list[scores.Figure]
    said: list[Any]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.figures), f"95% intervals; {len(self.said):,} texts"])


def task_of(encoder: TextEncoder) -> str:
    """What it was trained for, as data call it. Raises UserError when for none of the four."""
    if not getattr(encoder.config, "classes", 0):
        raise UserError(
            "this model was trained for no task that has right answers; fine-tune it: task=… data=… start=…"
        )
    return "regression" if encoder.numbers else getattr(encoder.config, "task", "sequence")


def judge(encoder: TextEncoder, examples: Sequence[Example]) -> Judgement:
    """Raises UserError, with file and row, where one has a label that the model does not know."""
    task = task_of(encoder)
    if not examples:
        raise UserError("there are no rows to evaluate on")
    for example in examples:
        TASKS[task].known(example, encoder.classes)
    said: list[Any] = []
    for start in range(0, len(examples), TOGETHER):
        said += _ask(encoder, task, examples[start : start + TOGETHER])
    truth = [example.label for example in examples]
    if task == "sequence":
        number = {name: i for i, name in enumerate(encoder.classes)}
        places = [[number[name] for name in names] for names in (said, truth)]
        figures = scores.of_classes(*places, len(number))
    elif task == "token":
        names = [[tag for _, tag in label] for label in truth]
        figures = scores.of_tags(said, names, spell_entities(encoder.classes))
    elif task == "span":
        figures = scores.of_answers(said, [[answer for answer, _ in label] for label in truth])
    else:
        figures = scores.of_numbers(said, truth)
    return Judgement(task, figures, said)


def _ask(encoder: TextEncoder, task: str, examples: Sequence[Example]) -> list[Any]:
    texts, seconds = [e.text for e in examples], [e.second for e in examples]
    if task == "token":
        return [[tag.name for tag in tags] for tags in encoder.tag([e.words()[0] for e in examples])]
    if task == "span":
        # A model is not asked to say that there is none where there always is one.
        return [a.text for a in answer_questions(encoder, texts, seconds, none=any(not e.label for e in examples))]
    others = seconds if any(seconds) else None
    if task == "regression":
        return encoder.predict(texts, others).tolist()
    return [encoder.classes[i] for i in encoder.classify(texts, others).argmax(1).tolist()]


def judge_rows(encoder: TextEncoder, data: str, **settings: Any) -> Judgement:
    """Evaluate on labelled rows, print the figures and return them. settings: those of LabelledTextData.

    Of a source with splits of its own, on those rows of it that are held out; of the source that the model was trained
    on, on those that it did not learn from.
    """
    trained = encoder.card.get("run", {}).get("data", {})
    given = {"held_out": 0.0}
    if trained.get("path") == data:
        given = {name: trained[name] for name in SPLIT_SETTINGS if name in trained}
        say(f"{data} is what the model was trained on: judged by the rows that were held out")
    given |= {"path": data, "task": task_of(encoder), **settings}
    rows = LabelledTextData.from_dict(given).examples()
    found = judge(encoder, [row for row in rows if row.split == "held_out"] or rows)
    print(found)
    return found
