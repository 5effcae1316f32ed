"""Batches of tokens from records, ready before they are asked for; where a loader stands is two integers."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from onefold.core.batch import TokenBatch
from onefold.core.errors import UserError
from onefold.data.plan import Plan
from onefold.data.records import Ragged

AHEAD = 4  # batches kept ready


class Loader:
    """Endless batches of one process: epoch after epoch, each as `plan(epoch)` says, gathered by a thread of its own.

    `state()` is {"epoch", "seen"}: where the next batch begins, counted in rows of all processes, whatever lies ready
    already. Given back as `state`, with any number of processes, the same rows follow. Raises UserError when there is
    nothing to read or `rows` does not fit.
    """

    def __init__(
        self,
        plan: Callable[[int], Plan],
        gather: Callable[[Plan, slice], TokenBatch],
        rows: int,
        rank: int = 0,
        world: int = 1,
        state: dict[str, int] | None = None,
    ):
        if rows < 1 or rows % world:
            raise UserError(
                f"a batch of {rows} rows cannot be shared by {world} processes: make it a multiple of {world}"
            )
        self.rows = rows
        self.epoch, self.seen = (state["epoch"], state["seen"]) if state else (0, 0)
        if self.seen % rows:
            raise UserError(f"the data was read in batches of another size: {self.seen} rows are no multiple of {rows}")
        self._plan, self._gather, self._share = plan, gather, (rank, world)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if self._thread is None:
            self._begin()
        found = self._ready.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        batch, self.epoch, self.seen = found
        return batch

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seen": self.seen}

    def close(self) -> None:
        """Stop the thread; iterating again goes on from `state()`."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _begin(self) -> None:
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue(AHEAD)
        coming = _batches(self._plan, self._gather, self.rows, self._share, self.epoch, self.seen)
        # The thread knows the queue, not the loader: a loader that nobody holds any more ends its thread.
        self._thread = threading.Thread(
            target=_fill, args=(coming, self._ready, self._stop), name="onefold-loader", daemon=True
        )
        weakref.finalize(self, self._stop.set)
        self._thread.start()


def _batches(
    plan: Callable[[int], Plan],
    gather: Callable[[Plan, slice], TokenBatch],
    rows: int,
    share: tuple[int, int],
    epoch: int,
    seen: int,
) -> Iterator[tuple[TokenBatch, int, int]]:
    """(this process's part of a batch, epoch and seen rows after it), without end."""
    rank, world = share
    mine = rows // world
    while True:
        planned = plan(epoch)
        if not planned.batches:
            raise UserError("there is nothing to train on: the data holds no tokens")
        for batch in range(seen // rows, planned.batches):
            begin = batch * rows + rank * mine
            found = gather(planned, slice(begin, begin + mine))
            last = batch + 1 == planned.batches
            yield (found, epoch + 1, 0) if last else (found, epoch, (batch + 1) * rows)
        epoch, seen = epoch + 1, 0


def _fill(coming: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    """Put what comes into the bounded queue until told to stop; an error is passed on as the last thing."""
    try:
        for item in coming:
            if not _put(ready, item, stop):
                return
    except BaseException as error:
        _put(ready, error, stop)


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def gather(plan: Plan, rows: slice, tokens: Ragged, pad: int, learned: Ragged | None = None) -> TokenBatch:
    """The batch of these rows of a plan, which lie in one batch of it.

    tokens: start, text, end of every document; input t predicts target t + 1. learned: for each token 1 if it is to be
    predicted; None: all are. Places that the plan leaves empty are `pad` with weight 0, in a segment of their own.
    """
    first = plan.first[rows.start : rows.stop + 1]
    pieces, counts = plan.pieces.take(np.arange(first[0], first[-1])), np.diff(first)
    lengths, context = pieces.length, plan.context
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(lengths) - lengths  # tokens of all pieces before this one
    filled = np.bincount(row, lengths, len(counts)).astype(np.int64)
    column = before - (np.cumsum(filled) - filled)[row]  # where in its row a piece begins
    inside = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    place = np.repeat(row * context + column, lengths) + inside

    def laid(values: np.ndarray, empty: np.ndarray) -> torch.Tensor:
        """Values at their places, `empty` elsewhere: [B, T]."""
        empty.reshape(-1)[place] = values
        tensor = torch.from_numpy(empty)
        return tensor.pin_memory() if torch.cuda.is_initialized() else tensor

    shape = (len(counts), context)
    starts = tokens.starts[pieces.document] + pieces.offset
    weights = inside >= np.repeat(pieces.skip, lengths)
    if learned is not None:
        weights = weights * learned.gather(starts + 1, lengths)
    batch = TokenBatch(
        tokens=laid(tokens.gather(starts, lengths), np.full(shape, pad, np.int64)),
        targets=laid(tokens.gather(starts + 1, lengths), np.full(shape, pad, np.int64)),
        weights=laid(weights, np.zeros(shape, np.float32)),
    )
    if plan.pure[rows.start // plan.rows]:
        return batch
    number = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]  # of a piece in its row
    padding = np.arange(context) - filled[:, None]  # below 0: none
    return replace(
        batch,
        positions=laid(inside, np.maximum(padding, 0)),
        segments=laid(np.repeat(number, lengths), np.repeat(counts[:, None], context, axis=1)),
    )
