"""Batches from records, ready before they are asked for; where a loader stands is two integers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

from onefold.core.batch import Batch
from onefold.core.errors import UserError
from onefold.data.ahead import Ahead


class Planned(Protocol):
    """What an epoch reads: a number of batches over all processes."""

    @property
    def batches(self) -> int: ...


P = TypeVar("P", bound=Planned)
B = TypeVar("B", bound=Batch)


class Loader(Generic[P, B]):
    """Endless batches of one process: epoch after epoch, each as `plan(epoch)` says, gathered by threads of its own.

    `gather(planned, rows)` makes a batch of the rows [rows.start, rows.stop) of an epoch; threads call it for several
    batches at once. A batch is valid as long as it is held. `state()` is {"epoch", "seen"}: where the next batch
    begins, counted in rows of all processes, whatever lies ready already. Given back as `state`, with any number of
    processes, the same rows follow. Raises UserError when there is nothing to read or `rows` does not fit.
    """

    def __init__(
        self,
        plan: Callable[[int], P],
        gather: Callable[[P, slice], B],
        rows: int,
        rank: int = 0,
        world: int = 1,
        state: dict[str, int] | None = None,
        threads: int = 1,
    ):
        if rows < 1 or rows % world:
            raise UserError(
                f"a batch of {rows} rows cannot be shared by {world} processes: make it a multiple of {world}"
            )
        self.rows = rows
        self.epoch, self.seen = (state["epoch"], state["seen"]) if state else (0, 0)
        if self.seen % rows:
            raise UserError(f"the data was read in batches of another size: {self.seen} rows are no multiple of {rows}")
        self._plan, self._gather, self._share, self._threads = plan, gather, (rank, world), threads
        self._work: Ahead[tuple[B, int, int]] | None = None

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        if self._work is None:
            jobs = _jobs(self._plan, self._gather, self.rows, self._share, self.epoch, self.seen)
            self._work = Ahead(jobs, self._threads)
        try:
            batch, self.epoch, self.seen = next(self._work)
        except BaseException:
            self.close()
            raise
        return batch

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seen": self.seen}

    def close(self) -> None:
        """Stop the threads; iterating again goes on from `state()`."""
        if self._work is not None:
            self._work.close()
            self._work = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Evaluation(Generic[P, B]):
    """Batches of `rows` over the `count` rows of a plan, once; can be iterated again. The last one may have fewer."""

    def __init__(self, planned: P, gather: Callable[[P, slice], B], count: int, rows: int, threads: int = 1):
        self._planned, self._gather, self._threads = planned, gather, threads
        self.count, self.rows = count, rows

    def __len__(self) -> int:
        return -(-self.count // self.rows)

    def __iter__(self) -> Iterator[B]:
        return self.share(0, 1)

    def share(self, rank: int, world: int) -> Iterator[B]:
        """Of each batch, what process `rank` of `world` computes.

        All get as many: a process that comes away empty from a small last batch repeats a row, which is not `counted`.
        """
        jobs = (partial(self._part, start, rank, world) for start in range(0, self.count, self.rows))
        with Ahead(jobs, self._threads) as parts:
            yield from parts

    def _part(self, start: int, rank: int, world: int) -> B:
        rows = min(self.rows, self.count - start)
        begin, end = (start + rows * i // world for i in (rank, rank + 1))
        if begin < end:
            return self._gather(self._planned, slice(begin, end))
        return replace(self._gather(self._planned, slice(start, start + 1)), counted=False)


def _jobs(
    plan: Callable[[int], P],
    gather: Callable[[P, slice], B],
    rows: int,
    share: tuple[int, int],
    epoch: int,
    seen: int,
) -> Iterator[Callable[[], tuple[B, int, int]]]:
    """Functions that make (this process's part of a batch, epoch and seen rows after it), without end."""
    rank, world = share
    mine = rows // world
    while True:
        planned = plan(epoch)
        if not planned.batches:
            raise UserError("there is nothing to train on: the data are empty")
        for batch in range(seen // rows, planned.batches):
            begin = batch * rows + rank * mine
            last = batch + 1 == planned.batches
            after = (epoch + 1, 0) if last else (epoch, (batch + 1) * rows)
            yield partial(_made, gather, planned, slice(begin, begin + mine), after)
        epoch, seen = epoch + 1, 0


def _made(gather: Callable[[P, slice], B], planned: P, rows: slice, after: tuple[int, int]) -> tuple[B, int, int]:
    return gather(planned, rows), *after
