"""A synthetic language of tasks: what to do with a few digits, said in thousands of ways; the teacher is a program.

    Please name the largest digit of this row, and nothing else.    3 1 4 2    →    4

The teacher mostly repeats with one word changed what it was shown, as models do, is wrong at times, and asks for what
cannot be done. Nothing here says anything about what large models know.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.teacher import Asked, Written

COUNT, LARGEST = 4, 6  # digits of a row, and how many there are
DOES: dict[str, tuple[Callable[[list[int]], str], tuple[str, ...]]] = {
    "first": (lambda row: str(row[0]), ("first digit", "digit at the beginning", "opening digit")),
    "last": (lambda row: str(row[-1]), ("last digit", "digit at the end", "closing digit")),
    "largest": (lambda row: str(max(row)), ("largest digit", "greatest digit", "digit above all others")),
    "smallest": (lambda row: str(min(row)), ("smallest digit", "least digit", "digit below all others")),
    "backwards": (lambda row: _text(row[::-1]), ("digits backwards", "digits in reverse", "digits from last to first")),
    "second": (lambda row: str(row[1]), ("second digit", "digit after the first", "digit in second place")),
    "ends": (lambda row: _text([row[0], row[-1]]), ("first and last digit", "digits at both ends", "outer digits")),
    "rising": (
        lambda row: "yes" if all(a <= b for a, b in pairwise(row)) else "no",
        ("answer whether digits rise", "answer whether nothing falls", "answer whether digits never shrink"),
    ),
}
WORDINGS = {words: kind for kind, (_, some) in DOES.items() for words in some}
OPENINGS = ("", "please ", "now ", "kindly ", "as a test, ", "once more, ")
VERBS = ("write down", "tell me", "give me", "name", "find", "print", "report", "work out")
PLACES = ("of the list", "of these numbers", "in what follows", "from this row", "of the given sequence", "below")
ENDINGS = ("", " and nothing else", " without a comment", " in plain text", ", that is all")
UNSUITED = ("draw a graph of the row below", "tell me", "show me a picture of these numbers", "7 of these numbers")


@dataclass(frozen=True)
class Wish:
    """An instruction of the language, part by part."""

    opening: str
    verb: str
    wording: str
    place: str
    ending: str

    @property
    def text(self) -> str:
        said = f"{self.opening}{self.verb} the {self.wording} {self.place}{self.ending}."
        return said[0].upper() + said[1:]


PARTS = {"opening": OPENINGS, "verb": VERBS, "wording": tuple(WORDINGS), "place": PLACES, "ending": ENDINGS}


def wish(random: Random) -> Wish:
    return Wish(**{part: random.choice(some) for part, some in PARTS.items()})


def numbers(random: Random) -> str:
    return _text([random.randrange(LARGEST) for _ in range(COUNT)])


def solve(instruction: str, row: str) -> str:
    """What is right; "" where the instruction is none of the language. The longest wording in it counts."""
    found = [words for words in WORDINGS if f"the {words} " in instruction]
    return DOES[WORDINGS[max(found, key=len)]][0]([*map(int, row.split())]) if found else ""


def knowledge(random: Random) -> str:
    """A line of the text that a model reads before anybody tells it to do something: what is true, or a wish, which
    nobody grants."""
    row, words = numbers(random), random.choice([*WORDINGS])
    return f"the {words} of {row} : {solve(f'the {words} ', row)}" if random.random() < 0.7 else wish(random).text


class Program:
    """The teacher: it goes on with lists of tasks, tells classifications, and gives examples that are right mostly."""

    name = "program"

    def __init__(self, right: float = 0.85, new: float = 0.25):
        self.right, self.new = right, new

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for i, one in enumerate(asked):
            prompt = one.messages[-1]["content"]
            random = Random(f"{prompt} {one.copy} {sampling.seed}")
            task = prompt.rsplit("Task:", 1)[-1].split("\n")[0].strip()
            if prompt.startswith("Go on"):
                said = self._more(prompt, random)
            elif prompt.startswith("Is the answer"):
                said = "Yes" if "whether" in task else "No"
            else:
                said = self._example(task, random)
            yield i, Written(said, "stop")

    def _more(self, prompt: str, random: Random) -> str:
        shown = [line.split(": ", 1)[1] for line in prompt.splitlines() if line.startswith("Task ") and ": " in line]
        items = []
        for _ in range(8):
            drawn = random.random()
            if drawn < 0.1:
                items.append(random.choice(UNSUITED).capitalize() + ".")
            elif drawn < 0.1 + self.new:
                items.append(wish(random).text)
            else:
                items.append(_nearly(random.choice(shown), random))
        return "\n".join(f"{n}. {text}" for n, text in enumerate(items, len(shown) + 1))

    def _example(self, task: str, random: Random) -> str:
        row = numbers(random)
        said = solve(task, row)
        if not said:
            return "Input: none\nOutput: I do not know."
        if random.random() > self.right:
            said = solve(f"the {random.choice([*WORDINGS])} ", row)
        return f"Label: {said}\nInput: {row}" if "whether" in task else f"Input: {row}\nOutput: {said}"


def _nearly(text: str, random: Random) -> str:
    """The same with one part said otherwise; what cannot be taken apart stays."""
    for some in random.sample([VERBS, PLACES, tuple(WORDINGS)], 3):
        for words in sorted(some, key=len, reverse=True):
            if words in text:
                return text.replace(words, random.choice(some), 1)
    return text


def _text(row: Sequence[int]) -> str:
    return " ".join(map(str, row))
