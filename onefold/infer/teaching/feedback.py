"""AI feedback (UltraFeedback, Cui et al. 2023, arXiv 2310.01377), as Zephyr uses it (Tunstall et al. 2023, arXiv
2310.16944, section 3): several models answer, a judge rates what they say, and preferences are made of that.

    prompts → answers of several models → ratings → the best answer against another one → pairs

    out=pairs.jsonl       preferences, to be learned from (data.kind=preferences)
    pairs.asked.jsonl     all answers and ratings, raw

All but these is a pure function of settings, prompts and what was said: resuming replays it, and so do other settings.
"""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.core.progress import say
from onefold.data.text.chat.answers import Said
from onefold.data.text.chat.prompts import read_prompts
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching.journal import Journal, asked_key
from onefold.infer.teaching.judges import Judge
from onefold.infer.teaching.teacher import Asked, LazyTeacher, Teacher, Written

Count = Annotated[int, Field(ge=1)]
Against = Literal["random", "worst"]


class FeedbackConfig(Config):
    """How answers are drawn, and which of them become a pair."""

    prompts: Path
    out: Path = Path("pairs.jsonl")
    answers: Count | None = None  # to each prompt, of models drawn for it (UltraFeedback: 4 of 17); None: of all
    against: Against = "random"  # the best one's rival: any worse one, as Zephyr has it, or the worst
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Count = 512
    seed: int = 0

    def sampling(self) -> Sampling:
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed} if self.temperature else {}
        return Sampling.from_dict({"max_new_tokens": self.max_new_tokens, **drawn})

    @property
    def asked(self) -> Path:
        """Where all that was said lies."""
        return self.out.with_suffix(".asked.jsonl")


@dataclass
class Judged:
    """What became of all prompts."""

    pairs: int = 0
    ties: int = 0  # prompts all of whose answers are equally good
    spoilt: int = 0  # prompts whose better answers are all cut off
    lacking: int = 0  # prompts with fewer than two different answers that have a rating
    empty: int = 0  # answers that say nothing
    cut: int = 0  # answers that reached max_new_tokens before their end: none of them is ever preferred
    unread: int = 0  # answers without a rating that could be read…
    unsaid: int = 0  # …of which the judge was cut off
    ratings: dict[str, list[float]] = field(default_factory=dict)  # by model
    best: Counter[str] = field(default_factory=Counter)  # pairs whose better answer is a model's


@dataclass(frozen=True)
class _Answer:
    author: str
    text: str
    cut: bool
    score: float | None


class _Request:
    """A prompt, and who answers it: models as numbers, since one may answer more than once."""

    def __init__(self, place: str, prompt: Said, models: int, config: FeedbackConfig):
        self.place, self.prompt = place, prompt
        self.random = Random(f"{config.seed} {json.dumps(prompt, sort_keys=True)}")  # whatever stands beside it
        numbers = range(models)
        self.models = [*numbers] if config.answers is None else sorted(self.random.sample(numbers, config.answers))

    def asked(self, copy: int) -> Asked:
        said = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        return Asked(said, copy, self.place)


def feedback(config: FeedbackConfig, judge: Judge, models: Sequence[Teacher]) -> Judged:
    """Write preferences to `config.out`. A model that is named n times answers n times, where answers are drawn.

    One of the models is open at a time, beside the judge. Given the same again, it goes on where it stopped and asks
    nothing twice. Errors: UserError for prompts that cannot be read, a model or judge that fails (all that was said by
    then is kept), and where not a single pair was found.
    """
    if len(models) < 2 or (config.answers or len(models)) not in range(2, len(models) + 1):
        few = f"answers={config.answers} of {len(models)}" if config.answers else f"{len(models)} of them"
        raise UserError(f"preferences are between answers: at least 2, each of another of the models, not {few}")
    if config.temperature == 0 and len({model.name for model in models}) < len(models):
        raise UserError("a model that answers more than once says the same at temperature=0; set temperature=1")
    if config.out.suffix != ".jsonl" or config.out.resolve() == config.prompts.expanduser().resolve():
        raise UserError(f"out={config.out}: name another file, ending in .jsonl")
    if config.out.exists() and not config.asked.exists():
        raise UserError(f"{config.out} is something else's, since there is no {config.asked.name}; give another out=")
    requests = list(_requests(config, len(models)))
    answered = sum(_ask(config, requests, models, name) for name in dict.fromkeys(model.name for model in models))
    done, journal = Judged(), Journal(judge.teacher, config.asked)
    answers = (one for request in requests for one in _answers(config, request, models, journal))
    questions = len(judge.questions("", "", ""))
    asked = (
        question
        for request, _, said in answers
        if said.text
        for question in judge.questions(request.prompt, said.text, request.place)
    )
    rating = closing(journal.each("ratings", asked, answered * questions, judge.sampling))
    with rating as ratings, atomic_file(config.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for request in requests:
            found = []
            for _, author, said in _answers(config, request, models, journal):
                done.empty += not said.text
                if said.text:
                    opinions = [*islice(ratings, questions)]
                    score, cut = judge.rate(opinions), said.finish == "length"
                    done.cut += cut
                    done.unread += score is None
                    done.unsaid += score is None and any(one.finish == "length" for one in opinions)
                    found.append(_Answer(author, said.text, cut, score))
            if row := _pair(config, request, found, done):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        deque(ratings, maxlen=0)  # to its end, which tells that it is done
        if not done.pairs:
            raise UserError(f"no pairs: {_told(config, done)}; all that was said is in {config.asked}")
    _tell(config, done)
    return done


def _requests(config: FeedbackConfig, models: int) -> Iterator[_Request]:
    """Each prompt once."""
    seen: set[str] = set()
    for place, prompt, *_ in read_prompts(config.prompts):
        same = json.dumps(prompt, sort_keys=True)
        if same not in seen:
            seen.add(same)
            yield _Request(place, prompt, models, config)


def _ask(config: FeedbackConfig, requests: Iterable[_Request], models: Sequence[Teacher], name: str) -> int:
    """Let one of the models answer; how many answers say something."""
    teacher = next(model for model in models if model.name == name)
    asked = [
        request.asked(copy)
        for request in requests
        for number, copy in _copies(request, models)
        if models[number].name == name
    ]
    journal = Journal(teacher, config.asked)
    said = sum(
        bool(one.text.strip()) for one in journal.each(f"answers of {name}", asked, len(asked), config.sampling())
    )
    if isinstance(teacher, LazyTeacher):
        teacher.close()
    return said


def _answers(
    config: FeedbackConfig, request: _Request, models: Sequence[Teacher], journal: Journal
) -> Iterator[tuple[_Request, str, Written]]:
    """(the request, who says, what) of all its answers, as they lie in the journal."""
    for number, copy in _copies(request, models):
        key = asked_key(models[number], request.asked(copy), config.sampling())
        said = journal[key]
        yield request, models[number].name, said._replace(text=said.text.strip())


def _copies(request: _Request, models: Sequence[Teacher]) -> Iterator[tuple[int, int]]:
    """Which models answer, and the how manieth time each does."""
    before = [sum(other.name == model.name for other in models[:n]) for n, model in enumerate(models)]
    return ((number, before[number]) for number in request.models)


def _pair(config: FeedbackConfig, request: _Request, found: Sequence[_Answer], done: Judged) -> dict[str, Any] | None:
    """The best of the answers that are whole and its rival, as a row; what hinders it is counted."""
    rated: dict[str, tuple[_Answer, float]] = {}
    for one in found:
        if one.score is not None:
            done.ratings.setdefault(one.author, []).append(one.score)
            rated.setdefault(one.text, (one, one.score))
    if len(rated) < 2:
        done.lacking += 1
        return None
    best = max(score for _, score in rated.values())
    top = max((score for one, score in rated.values() if not one.cut), default=-inf)
    worse = [(one, score) for one, score in rated.values() if score < top]
    if not worse:
        done.ties += top == best
        done.spoilt += top < best
        return None
    if config.against == "worst":
        worst = min(score for _, score in worse)
        worse = [(one, score) for one, score in worse if score == worst]
    chosen = request.random.choice([one for one, score in rated.values() if score == top and not one.cut])
    rejected, low = request.random.choice(worse)
    done.pairs += 1
    done.best[chosen.author] += 1
    row = {"prompt": request.prompt, "chosen": chosen.text, "rejected": rejected.text}
    told = {
        "chosen_model": chosen.author,
        "chosen_score": top,
        "rejected_model": rejected.author,
        "rejected_score": low,
    }
    return row | told


def _told(config: FeedbackConfig, done: Judged) -> str:
    notes = [f"{done.ties:,} ties"] * bool(done.ties)
    notes += [f"{done.spoilt:,} prompts whose better answers are all cut off"] * bool(done.spoilt)
    notes += [f"{done.lacking:,} prompts with fewer than two different answers that have a rating"] * bool(done.lacking)
    notes += [f"{done.empty:,} empty answers"] * bool(done.empty)
    cut = f"{done.cut:,} answers cut off at max_new_tokens={config.max_new_tokens}, of which none is preferred"
    notes += [cut] * bool(done.cut)
    unsaid = f" ({done.unsaid:,} cut off: judge_max_new_tokens)" * bool(done.unsaid)
    notes += [f"{done.unread:,} answers without a rating that could be read{unsaid}"] * bool(done.unread)
    return "; ".join(notes) or "nothing is missing"


def _tell(config: FeedbackConfig, done: Judged) -> None:
    say(f"{done.pairs:,} pairs in {config.out}; {_told(config, done)}")
    for name, ratings in sorted(done.ratings.items(), key=lambda item: -fmean(item[1])):
        say(f"  rated {fmean(ratings):6.3g}, the better one in {done.best[name] / done.pairs:4.0%} of pairs: {name}")
