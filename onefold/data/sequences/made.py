"""Sequences that are made: each is a function of a seed and its place, so nothing has to be kept."""

from collections.abc import Iterator
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.sequences.source import Row

DIGITS = [str(digit) for digit in range(10)]
OPERATIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: _median(sorted(values)),
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
NESTED = 0.25  # of the arguments that could be expressions themselves
TRIES = 100_000  # for one expression


class _Made(Config):
    count: int = Field(default=10_000, ge=2)
    seed: int = Field(default=0, ge=0)

    def size(self) -> int:
        return self.count

    def stamp(self) -> dict[str, str | None]:
        return {}


class ListOps(_Made):
    """Nested lists of digits and what they amount to (Nangia and Bowman 2018, arXiv 1804.06028).

    As in the Long Range Arena (arXiv 2011.04006, section 2.2.1): minimum, maximum, median and sum modulo 10 of up to
    `arguments` digits or further lists, nested `depth` levels deep, digits included; expressions of other `lengths`,
    operations and brackets included, are thrown away. "[MAX 2 9 [MIN 4 7 ] 0 ]" is 9. The arena has 100,000 of them.
    """

    kind: Literal["listops"] = "listops"
    depth: int = Field(default=10, ge=2, le=50)
    arguments: int = Field(default=10, ge=2)
    lengths: tuple[int, int] = (500, 2000)

    @model_validator(mode="after")
    def _possible(self) -> "ListOps":
        least, most = self.lengths
        if not 4 <= least <= most:
            raise ValueError(f"lengths must be two rising numbers from 4 on, not {list(self.lengths)}")
        longest = 1
        for _ in range(self.depth - 1):
            longest = min(2 + self.arguments * longest, least)
        if longest < least:
            raise ValueError(f"no expression of depth {self.depth} is as long as {least}: change one of them")
        return self

    def rows(self) -> Iterator[Row]:
        for place in range(self.count):
            symbols, value = self._expression(Random(f"{self.seed} {place}"))
            yield Row(f"listops:{place}", symbols, str(value))

    def words(self) -> list[str]:
        return [*DIGITS, *OPERATIONS, END]

    def classes(self) -> list[str]:
        return DIGITS

    def _expression(self, random: Random) -> tuple[list[str], int]:
        for _ in range(TRIES):
            symbols: list[str] = []
            value = self._list(random, 1, symbols)
            if value is not None and len(symbols) >= self.lengths[0]:
                return symbols, value
        asked = f"{self.lengths[0]} to {self.lengths[1]} symbols and depth {self.depth}"
        raise UserError(f"expressions of {asked} hardly ever come about: change data.source.lengths or depth")

    def _list(self, random: Random, level: int, symbols: list[str]) -> int | None:
        """Write a list behind `symbols`, and return its value; None, and not to its end, if that is too long."""
        operation = random.choice([*OPERATIONS])
        symbols.append(operation)
        values = []
        for _ in range(random.randint(2, self.arguments)):
            if level + 1 < self.depth and random.random() < NESTED:
                value = self._list(random, level + 1, symbols)
                if value is None:
                    return None
            else:
                value = random.randrange(10)
                symbols.append(DIGITS[value])
            values.append(value)
            if len(symbols) >= self.lengths[1]:
                return None
        symbols.append(END)
        return OPERATIONS[operation](values)


class Delay(_Made):
    """What was said first is asked at the end: `kept` symbols, noise, and which one is the class ("?3": the fourth).

    Of a single one it goes without saying. Noise is drawn from symbols of its own, which say nothing: with the length
    grows what a recurrence's gradient has to come through (Hochreiter and Schmidhuber 1997, experiment 2). Of several,
    this is the copying task of recurrent networks (there, and arXiv 1511.06464, section 5.1), a symbol at a time: any
    may be asked for, so all have to be kept.
    """

    kind: Literal["delay"] = "delay"
    length: int = Field(default=1024, ge=1)
    kept: int = Field(default=1, ge=1)
    symbols: int = Field(default=8, ge=2)
    noise: int = Field(default=8, ge=2)

    @model_validator(mode="after")
    def _has_room(self) -> "Delay":
        if self.length < self.kept + (self.kept > 1):
            raise ValueError(f"{self.kept} symbols and a question do not fit a length of {self.length}")
        return self

    def rows(self) -> Iterator[Row]:
        symbols, noise, questions = self.classes(), self._noise(), self._questions()
        for place in range(self.count):
            random = Random(f"{self.seed} {place}")
            said = random.choices(symbols, k=self.kept)
            asked = random.choice(questions) if questions else []
            between = random.choices(noise, k=self.length - self.kept - len(asked))
            label = said[int(asked[0][1:])] if asked else said[0]
            yield Row(f"delay:{place}", [*said, *between, *asked], label)

    def words(self) -> list[str]:
        return [*self.classes(), *self._noise(), *(word for asked in self._questions() for word in asked)]

    def classes(self) -> list[str]:
        return [f"s{i}" for i in range(self.symbols)]

    def _noise(self) -> list[str]:
        return [f"n{i}" for i in range(self.noise)]

    def _questions(self) -> list[list[str]]:
        return [[f"?{i}"] for i in range(self.kept)] if self.kept > 1 else []


def _median(values: list[int]) -> int:
    """Rounded down where it lies between two."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2
