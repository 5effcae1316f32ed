"""A synthetic world of feedback: sentences about two things are asked for, models and their judge are programs.

    dog bridge   →   the old dog sees the small red bridge.

How good an answer is, is known: it has to be a sentence in which the first thing does something to the second; of those
that are, adjectives make it better and saying where makes it worse. The judge only sees that dimly.

Nothing here says anything about what people or large models prefer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random

from onefold.data.text.chat.messages import chat_ids, with_chat
from onefold.data.text.pairs.synthetic import ADJECTIVES, NOUNS, PREPOSITIONS, VERBS
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.infer.teaching.teacher import Asked, Written
from onefold.recipes.alignment import _preferences, _teaching

SEEDS = (0, 1, 2)
CONTEXT, VOCAB, LONGEST = 64, 400, 40  # LONGEST: tokens of an answer
TEXTS, TAUGHT, COMPARED, TESTED = 6000, 1200, 300, 200  # sentences, dialogues, prompts with feedback, and to test with
READING = 400  # steps in which the base reads
NO_SENTENCE = -3.0  # what an answer is worth that is not what was asked for
DIM, MUTE = 0.7, 0.02  # the judge's standard deviation, in units of quality, and how often it gives no rating
DOING = [form for verb in VERBS for form in verb.split(":")[1:2]]
_PHRASE = rf"the (?:(?:{'|'.join(ADJECTIVES)}) )*({'|'.join(NOUNS)})"
_SENTENCE = re.compile(rf"{_PHRASE} (?:{'|'.join(DOING)}) {_PHRASE}(?: (?:{'|'.join(PREPOSITIONS)}) {_PHRASE})*\.")
_JUDGED = re.compile(r"\[Request\]\n(.*?)\n\n\[Answer\]\n(.*?)\n\n\[Your task\]", re.DOTALL)


def follows(prompt: str, text: str) -> bool:
    """Whether an answer is a sentence about the two things that were asked about."""
    found = _SENTENCE.fullmatch(text.strip())
    return found is not None and list(found.groups()[:2]) == prompt.split()


def quality(prompt: str, text: str) -> float:
    return _preferences.reward(text) if follows(prompt, text) else NO_SENTENCE


def prompts(seed: int) -> tuple[list[str], list[str]]:
    """Those to learn from, and those to test with."""
    every = [" ".join(pair) for pair in permutations(NOUNS, 2)]
    Random(seed).shuffle(every)
    return every[TESTED:], every[:TESTED]


@dataclass(frozen=True)
class Author:
    """A model that answers: how often it does what is asked, and how many adjectives and places it likes to name."""

    name: str
    heeds: float
    adjectives: tuple[int, ...] = (0, 0, 1, 1, 2)
    places: tuple[int, ...] = (0, 0, 1, 1, 2)

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for i, one in enumerate(asked):
            prompt = one.messages[-1]["content"]
            random = Random(f"{self.name} {sampling.seed} {prompt} {one.copy}")
            things = prompt.split() if random.random() < self.heeds else random.sample(NOUNS, 2)
            yield i, Written(self.write(things, random), "stop")

    def write(self, things: Sequence[str], random: Random) -> str:
        words = [self._phrase(things[0], random), random.choice(DOING), self._phrase(things[1], random)]
        for _ in range(random.choice(self.places)):
            words += [random.choice(PREPOSITIONS), self._phrase(random.choice(NOUNS), random)]
        return " ".join(words) + "."

    def _phrase(self, noun: str, random: Random) -> str:
        return " ".join(("the", *random.sample(ADJECTIVES, random.choice(self.adjectives)), noun))


TEACHER = Author("teacher", 0.9)
AUTHORS = (
    Author("good", 0.95, adjectives=(1, 1, 2, 2), places=(0, 0, 0, 1)),
    Author("plain", 0.9, adjectives=(0, 0, 1)),
    Author("wordy", 0.9, places=(1, 2, 2)),
    Author("careless", 0.4),
)


class Rater:
    """The judge: it knows what is good, dimly, and sometimes gives no rating."""

    name = "rater"

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for i, one in enumerate(asked):
            text = one.messages[-1]["content"]
            found, random = _JUDGED.search(text), Random(text)
            seen = quality(*found.groups()) + random.gauss(0, DIM) if found else 0.0
            said = f"Rating: {min(max(round(5 + 1.5 * seen), 1), 10)}"
            yield i, Written("I cannot say." if random.random() < MUTE else said, "stop")


def base(folder: Path, seed: int) -> Path:
    """The run of a model that has read sentences, below what they are about, and no dialogues."""
    file, random = folder / "sentences.jsonl", Random(seed)
    if not file.is_file():
        writer, things = Author("text", 1.0), [random.sample(NOUNS, 2) for _ in range(TEXTS)]
        rows = [{"text": f"{' '.join(two)} : {writer.write(two, random)}"} for two in things]
        _teaching.write(file, rows)
    return _teaching.reader(file, folder / "base", seed, CONTEXT, VOCAB, READING)


def dialogues(folder: Path, seed: int) -> Path:
    """What the teacher says to prompts to learn from, as a file of conversations."""
    file, random = folder / "dialogues.jsonl", Random(seed)
    if not file.is_file():
        asked = [random.choice(prompts(seed)[0]) for _ in range(TAUGHT)]
        said = TEACHER.answer([Asked([{"role": "user", "content": one}], i) for i, one in enumerate(asked)], Sampling())
        _teaching.write(file, [{"prompt": one, "completion": written.text} for one, (_, written) in zip(asked, said)])
    return file


def measure(model: Model, seed: int) -> tuple[float, float]:
    """The mean quality of a model's answers to prompts to test with, and the share that are what was asked for."""
    asked = prompts(seed)[1]
    sampling = Sampling(temperature=1.0, max_new_tokens=LONGEST, seed=seed)
    tokenizer = with_chat(model.tokenizer)  # the base has none of its own
    rows = model.begin_all([chat_ids([{"role": "user", "content": one}], tokenizer) for one in asked], sampling)
    model.finish(rows, sampling)
    worth = [quality(prompt, row.text) for prompt, row in zip(asked, rows)]
    heeded = [follows(prompt, row.text) for prompt, row in zip(asked, rows)]
    return sum(worth) / len(worth), sum(heeded) / len(heeded)
