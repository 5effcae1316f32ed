"""Judges: how good an answer is, by a model that is asked for a rating (UltraFeedback, Cui et al. 2023, arXiv
2310.01377, section 2), or by a reward model.

Either is a teacher: what it says is read as a number. Each answer is judged by itself, so that its place among others
cannot matter; UltraFeedback shows all answers to a request at once.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onefold.core.config import unknown_name
from onefold.core.errors import UserError
from onefold.data.text.chat.answers import Said
from onefold.data.text.chat.messages import Message
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import as_writer, load
from onefold.infer.teaching.teacher import Asked, Refusals, Teacher, Written, as_teacher, open_teacher
from onefold.infer.text_encoder import TextEncoder

ASPECTS = {
    "instruction_following": "Does it do what was asked, in the way in which it was asked?",
    "truthfulness": "Is what it says true, and does it agree with what the request says?",
    "honesty": "Does it sound as sure as it can be, no more and no less?",
    "helpfulness": "Is it of use to whoever asked: right, complete, clear and not longer than needed?",
}
TEMPLATE = """How good is an answer to a request? Judge it by one question only: {aspect}

[Request]
{prompt}

[Answer]
{answer}

[Your task]
Say in a sentence or two what is good and what is bad about the answer in this respect. Then rate it from 1 (very bad) \
to 10 (very good), on a last line of its own:
Rating: N"""
LEAST, MOST = 1.0, 10.0
TOGETHER = 64  # answers that a reward model reads at once
FEW = 8  # words of a text whose only number is its rating
_LABEL = re.compile(r"ratings?|scores?", re.IGNORECASE)
_LABELLED = re.compile(rf"(?:{_LABEL.pattern})(?:\s+(?:is|of))?\W{{0,12}}?(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
# What is no rating itself, and may stand where one does.
_SCALE = re.compile(r"\*|\\boxed|\s*(?:/|out of)\s*10\b|\(?\b1\s*(?:-|–|to)\s*10\b\)?", re.IGNORECASE)


@dataclass(frozen=True)
class Judge:
    """Whom to ask, what, and how to read what it says."""

    teacher: Teacher
    questions: Callable[[Said, str, str], list[Asked]]  # of a prompt, an answer and their place: as many each time
    read: Callable[[str], float | None]  # None: no rating can be found
    sampling: Sampling

    def rate(self, said: Sequence[Written]) -> float | None:
        """The mean of what it says to the questions about one answer; None where one of them has no rating, as what
        was cut off before it, since means over other aspects cannot be compared."""
        ratings = [None if written.finish == "length" else self.read(written.text) for written in said]
        known = [rating for rating in ratings if rating is not None]
        return sum(known) / len(known) if known and len(known) == len(ratings) else None


def open_judge(
    name: str,
    aspects: str | Sequence[str] = tuple(ASPECTS),
    template: str = TEMPLATE,
    key: str | None = None,
    device: str = "cpu",
    batch: int = 16,
    max_new_tokens: int = 256,
    **settings: Any,
) -> Judge:
    """A judge by its address or path: a service, a model that chats, or a reward model, which is asked once for each
    answer, and for no aspect. Errors: UserError for what is none of these, aspects and templates that say nothing.
    """
    if "://" in name:
        service = open_teacher(name, key, device, batch, **settings)
        return judge_by_template(service, aspects, template, max_new_tokens)
    if settings:
        raise UserError(f"{next(iter(settings))} is a setting of services, and {name} is a model")
    model = load(name, device)
    if isinstance(model, TextEncoder):
        scorer = RewardTeacher(model, name)
        return Judge(scorer, lambda *one: [Asked(_turns(*one[:2]), place=one[2])], _plain, Sampling())
    return judge_by_template(as_teacher(as_writer(model, name), name, batch), aspects, template, max_new_tokens)


def judge_by_template(
    teacher: Teacher,
    aspects: str | Sequence[str] = tuple(ASPECTS),
    template: str = TEMPLATE,
    max_new_tokens: int = 256,
) -> Judge:
    """A judge that is asked for a rating of each aspect: names in ASPECTS, or questions of your own."""
    if isinstance(aspects, str):
        names = [name.strip() for name in aspects.split(",")]
        aspects = names if any(name in ASPECTS for name in names) else [aspects]
    for part in ("prompt", "answer", *(["aspect"] if len(aspects) > 1 else [])):
        if f"{{{part}}}" not in template:
            raise UserError(f"the judge's template has no {{{part}}}: it needs {{prompt}}, {{answer}} and {{aspect}}")
    for aspect in aspects:
        if aspect not in ASPECTS and len(aspect.split()) < 2:
            said = unknown_name(aspect, ASPECTS).replace("setting", "aspect")
            raise UserError(f"{said}, or ask a question of your own")
    if not aspects:
        raise UserError(f"a judge needs aspects to judge by: {', '.join(ASPECTS)}, or questions of your own")

    def questions(prompt: Said, answer: str, place: str) -> list[Asked]:
        said = {"prompt": _as_text(prompt), "answer": answer}
        texts = [_filled(template, said | {"aspect": ASPECTS.get(aspect, aspect)}) for aspect in aspects]
        return [Asked([{"role": "user", "content": text}], place=place) for text in texts]

    return Judge(teacher, questions, rating, Sampling.from_dict({"max_new_tokens": max_new_tokens}))


def rating(text: str) -> float | None:
    """The number from 1 to 10 that a text gives: behind its last "Rating:" or "Score:", or, of a few
    words without these, its only number."""
    plain = _SCALE.sub("", text)
    labelled, numbers = _LABELLED.findall(plain), _NUMBER.findall(plain)
    if not labelled and (len(numbers) != 1 or _LABEL.search(plain) or len(plain.split()) > FEW):
        return None
    found = float((labelled or numbers)[-1])
    return found if LEAST <= found <= MOST else None


class RewardTeacher:
    """A reward model: what it says to a conversation that ends with an answer is the score of that."""

    def __init__(self, model: TextEncoder, name: str):
        self.chat = bool(model.card.get("answers", {}).get("chat"))
        if "answers" not in model.card:
            raise UserError(f"{name} neither chats nor scores answers: train a reward model with onefold train reward")
        self.model, self.name = model, name

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        refusals = Refusals(asked)
        for start in range(0, len(asked), TOGETHER):
            some = refusals.begun(range(start, min(start + TOGETHER, len(asked))), self._framed)
            if refusals.others:
                yield from refusals.passed()
            if some:
                scores = self.model.score(*zip(*some.values()))
                yield from ((i, Written(repr(score), "stop")) for i, score in zip(some, scores.tolist()))
        yield from refusals.passed()

    def _framed(self, asked: Asked) -> tuple[Said, Said]:
        *before, last = asked.messages
        if self.chat:
            return before, [last]
        if len(before) != 1:
            raise UserError("this reward model reads plain text, and no conversations")
        return before[0]["content"], last["content"]


def _plain(text: str) -> float | None:
    return float(text) if text else None


def _turns(prompt: Said, answer: str) -> list[Message]:
    asked: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*asked, {"role": "assistant", "content": answer}]


def _as_text(prompt: Said) -> str:
    """What a judge reads of a prompt: of a conversation, who says what."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return prompt if isinstance(prompt, str) else prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def _filled(template: str, said: Mapping[str, str]) -> str:
    """All at once, so that what an answer says in braces stays what it says."""
    return re.sub(r"\{(prompt|answer|aspect)\}", lambda name: said[name[1]], template)
