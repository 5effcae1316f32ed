"""Preferences out of a model's own answers, where a check tells good ones: of code, one that runs nothing.

    requests → two answers each → the check → pairs of one that passes and one that does not → DPO

Where both answers fail, the function that the request was made of is what is preferred. Everything said is kept, so
that an interrupted command goes on; how many requests fit the time is measured once and kept, too.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onefold.core.config import Config
from onefold.core.device import pick
from onefold.core.files import atomic_write
from onefold.core.progress import say
from onefold.data.text.chat.code_check import fault
from onefold.data.text.chat.files import read_conversations
from onefold.infer.evaluation.scores import Figure, resampled, share
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, as_writer, load
from onefold.infer.teaching.journal import Journal
from onefold.infer.teaching.teacher import Asked, ModelTeacher, Written

COPIES = 2  # answers to each request
ROWS = 32  # written at once
FEWEST = 8  # pairs from which on there is something to learn
SHORT = 512  # characters of a request and its known answer, so that these and another answer fit the context
MEASURED, TRIES = 512, 3  # held-out requests at the most, and answers to each: few pass, so it takes many to tell
SHOWN = 3
ANSWERS, HELD_OUT, PAIRS, KEPT = "answers.jsonl", "held_out.jsonl", "pairs.jsonl", "asked.json"


class Request(NamedTuple):
    text: str
    known: str  # the answer that it was made of


class Counts(Config):
    """How many requests are asked: to learn from, and to measure by."""

    requests: int
    held_out: int


@dataclass(frozen=True)
class OwnAnswers:
    """What a model says to requests, in `folder`."""

    folder: Path
    seed: int
    max_new_tokens: int = 128

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=0.7, top_p=0.95, seed=self.seed, max_new_tokens=self.max_new_tokens)

    def pairs(self, start: Path, requests: Iterable[Request], held_out: int, seconds: float) -> Path | None:
        """A table of pairs, from as many of `requests` as `start` answers in so many seconds; None: there are too few.

        held_out: how many requests there are to measure by, of which as many are taken as take twice as long.
        """
        table = self.folder / PAIRS
        if not table.is_file():
            journal = Journal(ModelTeacher(_chatting(start), str(start), ROWS), self.folder / ANSWERS)
            chosen = self._asked(journal, requests, held_out, seconds)
            said = journal.ask("answering", [one for r in chosen for one in _copies(r, COPIES)], self.sampling)
            rows = list(_compared(chosen, said))
            atomic_write(table, "".join(json.dumps(row) + "\n" for row in rows))
            own = sum(row["own"] for row in rows)
            say(f"{len(rows):,} pairs from {len(said):,} answers; in {own:,} the preferred one is the model's own")
        with table.open() as file:
            if sum(1 for _ in file) >= FEWEST:
                return table
        say("too few pairs: nothing is learned from preferences")
        return None

    def _asked(self, journal: Journal, requests: Iterable[Request], held_out: int, seconds: float) -> list[Request]:
        """The first of `requests` that fit the time, as the first batch of answers tells; that is asked in any case."""
        kept, some = self.folder / KEPT, iter(requests)
        few, began = list(islice(some, ROWS // COPIES)), time.monotonic()
        if not kept.is_file():
            journal.ask("first answers", [one for r in few for one in _copies(r, COPIES)], self.sampling)
            fitting = int(len(few) * max(1.0, seconds / (time.monotonic() - began)))
            counts = Counts(requests=fitting, held_out=min(held_out, MEASURED, 2 * COPIES * fitting // TRIES))
            atomic_write(kept, counts.to_json() + "\n")
        return few + list(islice(some, self._counts.requests - len(few)))

    @property
    def _counts(self) -> Counts:
        kept = self.folder / KEPT
        return Counts.from_json(kept.read_text(), str(kept))

    def gain(self, before: Path, after: Path, requests: Iterable[Request]) -> dict[str, Any]:
        """How many answers to requests held out pass the check: see study/pages/gain.py.

        Answers to one request are alike, so intervals count requests only.
        """
        asked = list(islice(requests, self._counts.held_out))
        said = [self._said(place, asked) for place in (before, after)]
        faults = [[_fault(asked[n // TRIES], w) for n, w in enumerate(answers)] for answers in said]
        passed = np.array([[found is None for found in some] for some in faults], float).reshape(2, -1, TRIES).mean(2)
        figures = [share(name, float(row.sum()), len(asked)) for name, row in zip(("before", "after"), passed)]
        gained = resampled("gain", lambda rows: float((passed[1] - passed[0])[rows].mean()), len(asked))
        table = [json.loads(line) for line in (self.folder / PAIRS).read_text().splitlines()]
        return {
            "requests": len(asked),
            "tries": TRIES,
            "pairs": len(table),
            "own": sum(row["own"] for row in table),
            **{figure.name: _plain(figure) for figure in (*figures, gained)},
            "faults": [{found or "": some.count(found) for found in set(some)} for some in faults],
            "length": [float(np.mean([len(written.text) for written in answers])) for answers in said],
            "settings": self.sampling.but({"seed": None}).to_dict(),
            "examples": list(_examples(asked, said, faults)),
        }

    def _said(self, place: Path, requests: Sequence[Request]) -> list[Written]:
        journal = Journal(ModelTeacher(_chatting(place), str(place), ROWS), self.folder / HELD_OUT)
        asked = [one for request in requests for one in _copies(request, TRIES)]
        return journal.ask(f"held-out requests ({place.name})", asked, self.sampling)


def read_requests(file: Path) -> Iterator[Request]:
    """The requests of a file of conversations of two turns."""
    return (Request(*(m["content"] for m in messages)) for _, messages in read_conversations(file))


def to_learn_from(requests: Iterable[Request]) -> Iterator[Request]:
    """Short ones, whose known answer passes the check."""
    return (r for r in requests if len(r.text) + len(r.known) <= SHORT and fault(*r) is None)


def _chatting(place: Path) -> Model:
    model = as_writer(load(place, pick("auto")), place)
    assert isinstance(model, Model)
    return model


def _copies(request: Request, count: int) -> Iterator[Asked]:
    return (Asked([{"role": "user", "content": request.text}], copy) for copy in range(count))


def _fault(request: Request, written: Written) -> str | None:
    return fault(request.text, written.text, written.finish == "stop")


def _compared(requests: Sequence[Request], said: Sequence[Written]) -> Iterator[dict[str, Any]]:
    """For each request a pair of an answer that passes and one that does not, where there is one that does not."""
    for request, answers in zip(requests, zip(*(said[copy::COPIES] for copy in range(COPIES)))):
        failed = [w.text for w in answers if _fault(request, w) is not None and w.text.strip()]
        passed = [w.text for w in answers if _fault(request, w) is None]
        if failed:
            chosen = passed[0] if passed else request.known
            yield {"prompt": request.text, "chosen": chosen, "rejected": failed[0], "own": bool(passed)}


def _examples(
    requests: Sequence[Request], said: Sequence[Sequence[Written]], faults: Sequence[Sequence[str | None]]
) -> Iterator[dict[str, Any]]:
    """The first requests with both answers, short ones, whatever became of them."""
    short = [n for n, request in enumerate(requests) if len(request.text) <= 240][:SHOWN]
    for n in short:
        answers = [{"text": w[n * TRIES].text, "fault": f[n * TRIES]} for w, f in zip(said, faults)]
        yield {"request": requests[n].text, "before": answers[0], "after": answers[1]}


def _plain(figure: Figure) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
