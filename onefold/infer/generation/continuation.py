"""One text being continued: its tokens, its text as far as it is certain, and why it ended."""

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

Noted = tuple[int, float, list[tuple[int, float]]]  # a token, its log-probability, the likeliest ones and theirs
Finish = Literal["stop", "length"]


class Decodes(Protocol):
    """What turns the ids of a continuation into text, one by one (`Tokenizer.stream`)."""

    def push(self, token: int, /) -> str: ...
    def finish(self) -> str: ...


class StopStrings:
    """Looks for stop strings in a text that arrives in pieces, holding back what may be the beginning of one."""

    def __init__(self, stops: Collection[str]):
        self.stops = tuple(stops)
        self.held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Text that is now certain to stand before any stop string."""
        if self.found or not self.stops:
            return "" if self.found else piece
        text = self.held + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, once it is clear that nothing follows."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Continuation:
    """What the generate loop writes into, a token at a time.

    `prompt`: ids to continue. `budget`: how many tokens it may become. `ends`: ids that end it and are no part of it.
    `stream` None: tokens only, no text, and no stop strings either. `random`: what it is sampled with. `source`: ids
    that it is about, for models that read one text and write another.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        budget: int,
        ends: Collection[int] = (),
        stops: Collection[str] = (),
        stream: Decodes | None = None,
        random: np.random.Generator | None = None,
        source: Sequence[int] | None = None,
    ):
        self.prompt, self.budget, self.source = list(prompt), budget, source
        self.random = random or np.random.default_rng()
        self.ids: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self.end: int | None = None  # the one of `ends` that ended it
        self.ends, self._stream, self._stops = frozenset(ends), stream, StopStrings(stops)
        self._taken = 0
        self.top: int | None = None  # how many of the likeliest tokens are noted at each step; None: nothing is
        self.noted: list[Noted] = []

    @property
    def read(self) -> int:
        """How many tokens the model reads before it writes."""
        return len(self.prompt) + len(self.source or ())

    def note(self, token: int, logits: Float[Tensor, " V"]) -> None:
        """What the model itself gave to a token that is to be pushed, and to the likeliest, before any sampling."""
        likely = logits.float().log_softmax(0)
        values, ids = likely.topk(min(self.top or 0, len(likely)))
        self.noted.append((token, likely[token].item(), list(zip(ids.tolist(), values.tolist()))))

    def push(self, token: int) -> None:
        """The next token, which may be the last."""
        if token in self.ends:
            self.end = token
            self._close("stop")
            return
        self.ids.append(token)
        if self._stream is not None:
            self.text += self._stops.push(self._stream.push(token))
        if self._stops.found:
            self.finish = "stop"
        elif len(self.ids) == self.budget:
            self._close("length")

    def write(self, ids: Sequence[int], finish: Finish) -> None:
        """All the tokens at once, with why they end (a stop string may end them earlier)."""
        for token in ids:
            if self.finish is None:
                self.push(token)
        if self.finish is None:
            self._close(finish)

    def take(self) -> str:
        """Text since the last call."""
        new, self._taken = self.text[self._taken :], len(self.text)
        return new

    def _close(self, reason: Finish) -> None:
        if self._stream is not None:
            self.text += self._stops.push(self._stream.finish())
            if self._stops.found:
                reason = "stop"
            self.text += self._stops.finish()
        self.finish = reason
